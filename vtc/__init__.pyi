from vtc import backbones as backbones
from vtc import budget as budget
from vtc import configuration as configuration
from vtc import engine as engine
from vtc import errors as errors
from vtc import interface as interface
from vtc import job as job
from vtc import methods as methods
from vtc import plugins as plugins
from vtc import profiling as profiling
from vtc import registry as registry
from vtc import results as results
from vtc import testing as testing
from vtc.api import Answer as Answer
from vtc.api import CompressedImage as CompressedImage
from vtc.api import Model as Model
from vtc.api import compressing as compressing
from vtc.api import load as load
from vtc.store import Store as Store

__version__: str
