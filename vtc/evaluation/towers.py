"""What the vision tower made of pictures, kept on disk for runs to come that show it the same ones.

The runs of a sweep show one tower the same pictures in the same batches, whatever is done to its tokens behind it.
What is kept is the output of one call of the tower, under a hash of the pixels that it was given and of all that
computed it, so that what is read is bit for bit what would have been computed. A method that looks into the tower, or
changes it (`Compressor.tower`), has its pictures encoded as ever.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from vtc.engine.tower_watch import stand_in

if TYPE_CHECKING:
    from vtc.backbones.base import Backbone
    from vtc.interface import Compressor

VERSION = 1  # of the files' layout
FOLDER = "towers"  # in vtc's cache
GIGABYTE = 10**9
SPARE = 2 * GIGABYTE  # bytes of the disk that are left to others
PATIENCE = 5.0  # seconds for which another process's turn at the folder is waited for
SUM = 4  # bytes of the check sum behind what is stored


class TowerCache:
    """A folder with outputs of towers, of at most so many bytes.

    Where it is full, what no run has read or written since this object was made goes first, the oldest before the
    others; where all of it is in use, nothing more is stored: runs come by the same pictures in the same order, and
    what is replaced meanwhile would always be what comes next. Nothing that goes wrong here ends a run.

    Attributes:
        read, stored: how many calls of a tower were spared, and kept.
    """

    def __init__(self, folder: Path, most: float) -> None:
        self.folder, self.most = folder, int(most)
        self.read = self.stored = 0
        self._began = time.time()
        self._identities: dict[int, str] = {}  # by the tower's id: of a run, whose weights stay as they are

    @contextlib.contextmanager
    def sharing(self, backbone: Backbone, method: Compressor) -> Iterator[None]:
        """Inside, calls of the backbone's tower are looked up here, and kept."""
        if not self.most or not backbone.tower_outputs or method.tower() is not None:
            yield
            return
        with ExitStack() as stack:
            calls = _Calls(self, backbone)
            stack.callback(calls.keep)
            stand_in(stack, backbone.vision_tower, "forward", calls.forward)
            yield

    def identity(self, backbone: Backbone) -> str:
        """See `identity_of`; it takes a moment, and is taken once."""
        tower = id(backbone.vision_tower)
        if tower not in self._identities:
            self._identities[tower] = identity_of(backbone)
        return self._identities[tower]

    def get(self, key: str) -> dict[str, Tensor] | None:
        """What is stored under a key; None where nothing is, or where the file isn't as it was written."""
        from safetensors.torch import load

        path = self._path(key)
        try:
            content = path.read_bytes()
            if len(content) <= SUM or zlib.crc32(content[:-SUM]) != int.from_bytes(content[-SUM:], "big"):
                raise ValueError("not as it was written")
            _touch(path)
            tensors = load(content[:-SUM])
        except FileNotFoundError:
            return None
        except Exception:  # whatever safetensors says of a file that it can't read
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        self.read += 1
        return tensors

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Stores tensors where there is room for them."""
        from safetensors.torch import save

        content = save({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()})
        size = len(content) + SUM
        if size > self.most:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".lock", timeout=PATIENCE):
                if not self._make_room(size):
                    return
                with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".part", delete=False) as file:
                    file.write(content + zlib.crc32(content).to_bytes(SUM, "big"))
                _touch(Path(file.name))
                os.replace(file.name, self._path(key))
                self.stored += 1
        except (OSError, Timeout):
            return

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.tower"

    def _make_room(self, size: int) -> bool:
        """Whether there is room for `size` bytes, once what may go has gone."""
        kept = []
        for path in self.folder.iterdir():
            if path.suffix == ".part":  # of a process that was killed: whoever writes holds the lock
                path.unlink(missing_ok=True)
            elif path.suffix == ".tower":
                about = path.stat()
                kept.append((about.st_mtime, about.st_size, path))
        total = sum(own for _, own, _ in kept)
        for used, own, path in sorted(kept):
            if total + size <= self.most or used >= self._began:
                break
            path.unlink(missing_ok=True)
            total -= own
        disk = os.statvfs(self.folder)
        return total + size <= self.most and disk.f_bavail * disk.f_frsize >= size + SPARE


class _Calls:
    """The calls of one backbone's tower: looked up before they are computed, and kept once it is known what of them is
    read."""

    def __init__(self, cache: TowerCache, backbone: Backbone) -> None:
        self.cache, self.backbone = cache, backbone
        own = backbone.vision_tower.forward
        self.original: Callable[..., Any] = own
        self.identity = cache.identity(backbone)
        self.computed: list[tuple[str, Any]] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Takes the place of the tower's."""
        self.keep()
        key = key_of(self.identity, args, kwargs)
        if key is None:
            return self.original(*args, **kwargs)
        if (tensors := self.cache.get(key)) is not None:
            return _output(tensors, self.backbone.vision_tower)
        output = self.original(*args, **kwargs)
        if isinstance(getattr(output, "hidden_states", None), tuple):
            output.hidden_states = Levels(output.hidden_states)
        self.computed.append((key, output))
        return output

    def keep(self) -> None:
        """Stores what was computed since the last time."""
        for key, output in self.computed:
            tensors: dict[str, Tensor] = {}
            for name in self.backbone.tower_outputs:
                value = getattr(output, name, None)
                if isinstance(value, Levels):
                    tensors |= {f"{name}.{level}": value[level] for level in sorted(value.read)}
                elif isinstance(value, Tensor):
                    tensors[name] = value
            if tensors:
                self.cache.put(key, tensors)
        self.computed.clear()


class Levels(tuple):
    """Hidden states of a tower, one behind the other, which note the numbers by which they are read."""

    read: set[int]

    def __new__(cls, states: Any) -> Levels:
        new = super().__new__(cls, states)
        new.read = set()
        return new

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, int):
            self.read.add(number)
        return super().__getitem__(number)


def _touch(path: Path) -> None:
    """Notes that a file is in use: by the clock that a run's beginning is taken from, since a file system's own may be
    some milliseconds behind."""
    now = time.time()
    os.utime(path, (now, now))


def _output(tensors: Mapping[str, Tensor], tower: Any) -> Any:
    """An output of the tower that has what was stored of it."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    device = next(tower.parameters()).device
    fields: dict[str, Any] = {}
    for name, tensor in tensors.items():
        field, _, level = name.partition(".")
        if level:
            fields.setdefault(field, {})[int(level)] = tensor.to(device)
        else:
            fields[field] = tensor.to(device)
    return BaseModelOutputWithPooling(**fields)


def identity_of(backbone: Backbone) -> str:
    """Hash of all that decides what the tower makes of pixels: its class and configuration, its weights, where and how
    it computes."""
    tower = backbone.vision_tower
    device = next(tower.parameters()).device
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    state = hashlib.sha256()
    for word in (
        VERSION,
        torch.__version__,
        type(tower).__qualname__,
        tower.config.to_json_string(use_diff=False),
        tower.config._attn_implementation,
        getattr(backbone.model.config, "vision_feature_layer", None),  # what is read of the output
        backbone.tower_outputs,
        device.type,
        machine,
    ):
        state.update(f"{word}\n".encode())
    for name, tensor in tower.state_dict().items():
        state.update(f"{name}\n".encode())
        _update(state, tensor)
    return state.hexdigest()


def key_of(identity: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """Hash of one call of a tower; None where it is given what has no plain value."""
    state = hashlib.sha256(identity.encode())
    for name, value in [*enumerate(args), *sorted(kwargs.items())]:
        state.update(f"\n{name}=".encode())
        if isinstance(value, Tensor):
            _update(state, value)
        elif value is None or isinstance(value, (bool, int, float, str, torch.dtype)):
            state.update(repr(value).encode())
        else:
            return None
    return state.hexdigest()[:40]


def _update(state: Any, tensor: Tensor) -> None:
    """A tensor's type, shape and content."""
    state.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    plain = tensor.detach().contiguous().cpu().reshape(-1)
    state.update(plain.view(torch.uint8).numpy().data)
