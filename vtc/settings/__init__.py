"""A configuration as types: a dataclass for each section, each field with its default, what it may hold and what it
decides. `vtc.configuration.resolve` fills them from the command line; nothing behind it sees anything else.
"""

from vtc.settings.calibrate import CalibrateSettings
from vtc.settings.run import (
    DTYPES,
    FOLDER,
    METHOD_KINDS,
    NAMES,
    SECTION,
    SHORT_DTYPES,
    TEXT,
    AblationSettings,
    BackboneSettings,
    BenchmarkSettings,
    CompareSettings,
    MethodSettings,
    NewMethodSettings,
    ProfileSettings,
    ReportSettings,
    from_mapping,
)
from vtc.settings.store import StoreSettings
from vtc.settings.training import (
    DECAY,
    LOSSES,
    OPTIMIZER,
    DataSettings,
    LoraSettings,
    StageSettings,
    TrainingSettings,
)
from vtc.settings.tune import TuneSettings
from vtc.settings.visualize import SIDE_BY_SIDE, DemoSettings, VisualizeSettings

__all__ = [
    "DECAY",
    "DTYPES",
    "FOLDER",
    "LOSSES",
    "METHOD_KINDS",
    "NAMES",
    "OPTIMIZER",
    "SECTION",
    "SHORT_DTYPES",
    "SIDE_BY_SIDE",
    "TEXT",
    "AblationSettings",
    "BackboneSettings",
    "BenchmarkSettings",
    "CalibrateSettings",
    "CompareSettings",
    "DataSettings",
    "DemoSettings",
    "LoraSettings",
    "MethodSettings",
    "NewMethodSettings",
    "ProfileSettings",
    "ReportSettings",
    "StageSettings",
    "StoreSettings",
    "TrainingSettings",
    "TuneSettings",
    "VisualizeSettings",
    "from_mapping",
]
