"""The tokens between two decoder layers, and the verbs by which a method changes them.

A verb keeps positions, masks, roles and questions true, so that no method has to.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vtc.interface.checks import require
from vtc.interface.places import closed

TEXT, VISUAL, REGISTER = 0, 1, 2


@dataclass
class TokenSequence:
    """B rows of L tokens of width D between two decoder layers. Verbs return a new sequence and never change this one.

    Attributes:
        hidden: [B, L, D] hidden states (before layer 0: the embeddings).
        mask: [B, L] bool, the real tokens; the others are padding.
        position: [P, B, L] RoPE positions; P = 1, or 3 for M-RoPE.
        role: [B, L] TEXT | VISUAL | REGISTER.
        origin: [B, L] index in the user's sequence; -1 for a token that a method made. Where the row `w v v v q`
            (w and q are text) keeps only its second v: 0 2 4; where its v are merged into one: 0 -1 4.
        block: [B, L] 0 = shared prefix, q = 1… = the q-th independent question behind it. Attention is causal AND
            (key.block == 0 or key.block == query.block). All 0 outside packed training. The questions `a a` and
            `b b b` behind the prefix `w v v`: 0 0 0 1 1 2 2 2; the last b sees `w v v b b b`, and not `a a`.
        image: [B, L] which image of its row a visual or register token belongs to (0…); -1 for text.
        shift: [B, 1] what the changes so far add to the positions of later (decoded) tokens; None = nothing. Where
            `w v v v q` at positions 0 1 2 3 4 has become `w v q` at 0 1 2 it is -2: the next token, to which the user
            gives position 5, goes to 3.
        compact: whether dropping closes the gap in the positions. True before the LLM (layer 0): the LLM never sees the
            longer sequence. False between its layers: what was rotated by its position keeps it (FastV); and where
            positions are places in a grid (M-RoPE), which have no gaps: only an image that is replaced as a whole
            leaves its place. `w v v v q` that keeps its second v has the positions 0 1 2 where this is True, and 0 2 4
            where it is False.
        padded: whether there may be padding; False: the mask is True everywhere, which needn't be looked up then.
        place: [B, L] where a token stands in the user's sequence: its origin, of a merged or rewritten one where its
            first member stood; -1 for one that was inserted. None, where a sequence begins: its origin.
        holder: [B, T] of each of the user's tokens the place of the token that it has become a part of: its own, or
            that of the one it was merged into. `w v v v q` with its v merged into one: 0 1 1 1 4, at places 0 1 4.
        size: [B, L] float, how many tokens each stands for where attention is proportional to that, softmax(q·k / √d +
            log size) from here on (`merge`); None: each counts once.
        deep: [B, L, S, D] what is still added to a token behind each of the first S layers (deepstack, Qwen3-VL); None:
            nothing. It goes along with its token, is averaged where tokens merge, and zero for what a method made.
        home: [P, B, T] the positions of the user's tokens, with `home_shift` as later ones then had it; None, where a
            sequence begins: `position`.
        several: at how many positions a merged token stands at once, each in channels of its own (`restored`).
    """

    hidden: Tensor
    mask: Tensor
    position: Tensor
    role: Tensor
    origin: Tensor
    block: Tensor
    image: Tensor
    shift: Tensor | None = None
    compact: bool = False
    size: Tensor | None = None
    deep: Tensor | None = None
    padded: bool = True
    place: Tensor = None  # type: ignore[assignment]  # always a tensor behind __post_init__
    holder: Tensor = None  # type: ignore[assignment]
    home: Tensor = None  # type: ignore[assignment]
    home_shift: Tensor | None = None
    several: int = 1

    def __post_init__(self) -> None:
        self.place = self.origin if self.place is None else self.place
        if self.holder is None:
            self.holder = torch.arange(self.mask.shape[1], device=self.mask.device).expand_as(self.mask)
        if self.home is None:
            self.home, self.home_shift = self.position, self.shift

    # ------------------------------------------------------------------ what is there
    @property
    def visual(self) -> Tensor:
        """[B, L] bool: the real visual tokens."""
        return (self.role == VISUAL) & self.mask

    @property
    def images(self) -> tuple[Tensor, Tensor]:
        """The visual tokens image by image: indices [I, N] into the B·L tokens, and which are real, [I, N] bool.

        Images come row by row, in each row from left to right; N is the length of the longest.
        """
        if getattr(self, "_images", None) is None:
            # How many there are is needed on the host: one look there, in place of one for each number.
            owner = torch.where(self.visual, self.image, -1).cpu().numpy()
            row, column = np.nonzero(owner >= 0)
            image, length = owner[row, column], owner.shape[1]
            first = np.flatnonzero(np.diff(row * (length + 1) + image, prepend=-1))
            counts = np.diff(first, append=len(row))
            real = np.arange(counts.max(initial=0)) < counts[:, None]
            index = np.zeros(real.shape, dtype=np.int64)
            index[real] = row * length + column
            device = self.mask.device
            self._images = torch.from_numpy(index).to(device), torch.from_numpy(real).to(device)
        return self._images

    @property
    def frames(self) -> tuple[Tensor, Tensor]:
        """Of each image (see `images`) its row [I], and which of the row's images it is [I]: the frames of a video."""
        index, _ = self.images
        first = index[:, 0] if index.numel() else index.flatten()
        return torch.div(first, self.mask.shape[1], rounding_mode="floor"), self.image.flatten()[first]

    def visual_hidden(self) -> Tensor:
        """[I, N, D] hidden states of the visual tokens, image by image (see `images`; padded ones repeat token 0)."""
        index, _ = self.images
        hidden: Tensor = self.hidden.flatten(0, 1).index_select(0, index.flatten()).unflatten(0, index.shape)
        return hidden

    def fits(self, count: int | None) -> bool:
        """Whether no image has more than `count` visual tokens, so that none need go; None: no bound."""
        return count is None or self.images[0].shape[1] <= count

    def per_token(self, values: Tensor, fill: float = 0) -> Tensor:
        """Spreads values [I, N] of the visual tokens (see `images`) to [B, L]; `fill` elsewhere."""
        index, real = self.images
        out = values.new_full((self.mask.numel() + 1,), fill)  # the last place is for what isn't real
        place = index.masked_fill(~real, self.mask.numel())
        return out.scatter(0, place.flatten(), values.flatten())[:-1].view_as(self.mask)

    def to(self, device: torch.device) -> TokenSequence:
        """The same sequence with everything beside `hidden` on `device` (models spread over devices)."""
        moved = {
            f.name: getattr(self, f.name).to(device)
            for f in dataclasses.fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return dataclasses.replace(self, **moved)

    # ------------------------------------------------------------------ verbs
    def keep(self, kept: Tensor) -> TokenSequence:
        """Only these tokens, in their order.

        Args:
            kept: [B, L] bool, or [B, n] indices (any order; doubles count once).

        Rows may keep different numbers; the shorter ones are padded on the left. Keeping everything returns `self`.
        """
        if kept.dtype != torch.bool:
            kept = torch.zeros_like(self.mask).scatter(1, kept, True)
        kept = kept & self.mask
        removed = self.mask & ~kept
        counts = kept.sum(1)
        n, least, gone = torch.stack([counts.max(), counts.min(), removed.sum()]).tolist()
        if not gone:
            return self
        order = kept.to(torch.uint8).argsort(dim=1, stable=True)[:, self.mask.shape[1] - n :]
        mask = torch.ones_like(order, dtype=torch.bool) if least == n else kept.gather(1, order)
        position, shift = self.position, self.shift
        if self.compact:
            before = removed.cumsum(1)
            position = position - before
            shift = before[:, -1:].neg() if shift is None else shift - before[:, -1:]
        return self._take(order, mask, position, shift, padded=least < n)

    def renumbered(self) -> TokenSequence:
        """The same, in which dropping closes the gap in the positions between the LLM's layers too: those from here on
        see the tokens as if there had never been others. Positions that are places in a grid (M-RoPE) stay.
        """
        return dataclasses.replace(self, compact=len(self.position) == 1)

    def keep_visual(self, kept: Tensor) -> TokenSequence:
        """Of the visual tokens only `kept` [I, N] bool (images as in `images`); all others stay."""
        return self.keep(self.per_token(kept, False) | (self.role != VISUAL))

    def hide(self, hidden: Tensor) -> TokenSequence:
        """Without the tokens `hidden` [B, L] bool, as if a mask hid them: the others keep their positions."""
        kept = dataclasses.replace(self, compact=False).keep(~hidden)
        return dataclasses.replace(kept, compact=self.compact)

    def drop(self, role: int) -> TokenSequence:
        """Without the tokens of this role."""
        return self.keep(self.role != role)

    def merge(
        self, groups: Tensor, weights: Tensor | None = None, centre: Tensor | None = None, proportional: bool = False
    ) -> TokenSequence:
        """Replaces each group of tokens by one token, their weighted mean, at the place of its first member.

        Its position is the mean of theirs, rounded down (LLaVolta), or, before the LLM, the next free one.

        Args:
            groups: [B, L] group of each token, 0… in each row; -1 leaves a token as it is.
            weights: [B, L] ≥ 0; None: the plain mean.
            centre: [B, L] bool, one member of each group, at whose place and position the mean stands instead.
            proportional: attention counts a token as often as it has members (see `size`).
        """
        rows, length, _ = self.hidden.shape
        member = (groups >= 0) & self.mask
        if not member.any():
            return self
        most = int(groups.max()) + 1
        flat = member.flatten().nonzero()[:, 0]
        group = (flat // length) * most + groups.flatten()[flat]
        weight = None if weights is None else weights.flatten()[flat].float()
        size = torch.zeros(rows * most, device=flat.device).index_add(
            0, group, torch.ones_like(group, dtype=torch.float)
        )
        total = size if weight is None else torch.zeros_like(size).index_add(0, group, weight)
        whole = self._whole()
        part = whole.index_select(0, flat).float()
        part = part if weight is None else part * weight[:, None]
        mean = part.new_zeros(rows * most, part.shape[1]).index_add(0, group, part) / total.clamp(min=1e-12)[:, None]

        lead = flat if centre is None else torch.where(centre.flatten()[flat], flat, rows * length)
        first = torch.full((rows * most,), rows * length, device=flat.device).scatter_reduce(0, group, lead, "amin")
        there = first < rows * length
        holder = self._holder(flat, self.place.flatten()[first.clamp(max=rows * length - 1)[group]])
        first, where = first[there], there.nonzero()[:, 0]
        kept = (self.mask & ~member).flatten()
        kept[first] = True
        position = self.position
        if not self.compact and centre is None:
            position = position.flatten(1).clone()
            summed = torch.zeros(position.shape[0], rows * most, device=flat.device, dtype=torch.float64)
            summed = summed.index_add(1, group, position[:, flat].double())
            position[:, first] = (summed[:, where] / size[where]).floor().to(position.dtype)
            position = position.view_as(self.position)
        origin = self.origin.flatten().clone()
        origin[first] = torch.where(size[where] > 1, -1, origin[first])
        source = torch.arange(rows * length, device=flat.device)
        source[first] = rows * length + where
        view = dataclasses.replace(
            self,
            hidden=source.view(rows, length, 1),
            position=position,
            origin=origin.view(rows, length),
            holder=holder,
        )
        if proportional or self.size is not None:
            own = torch.ones_like(size[:1]).expand(rows * length) if self.size is None else self.size.flatten()
            members = torch.zeros_like(size).index_add(0, group, own[flat])
            view.size = own.index_put((first,), members[where]).view(rows, length)
        kept = kept.view(rows, length)
        if torch.equal(kept, self.mask):  # every group has one member
            return self
        return view.keep(kept)._from_pool(torch.cat([whole, mean.to(whole.dtype)]))

    def insert(self, embeddings: Tensor, role: int = REGISTER) -> TokenSequence:
        """Adds tokens behind each image; everything behind them moves on by as many positions.

        Args:
            embeddings: [M, D], the same for every image, or [I, M, D] (images as in `images`).
            role: what they are.
        """
        index, real = self.images
        rows, length, _ = self.hidden.shape
        count, m = index.shape[0], embeddings.shape[-2]
        if not count or not m:
            return self
        dev = self.mask.device
        last = index.masked_fill(~real, -1).amax(1)
        row, column = last // length, last % length
        ends = torch.zeros_like(self.mask)
        ends[row, column] = True
        before = ends.cumsum(1) - ends.long()  # images that end before this token
        total = ends.sum(1, keepdim=True)
        most = int(total.max())
        lead = m * (most - total)  # padding on the left of rows with fewer images
        source = torch.full((rows, length + m * most), -1, device=dev)
        source.scatter_(
            1, torch.arange(length, device=dev) + m * before + lead, torch.arange(length, device=dev).expand(rows, -1)
        )
        steps = torch.arange(m, device=dev)
        place = (column + 1 + m * before[row, column] + lead[row, 0])[:, None] + steps
        source[row[:, None], place] = length + steps  # which one follows below; here only that it is new

        old = source.clamp(0, length - 1)
        moved = self.position + m * before
        out = self._take(old, (source >= 0) & self.mask.gather(1, old), moved, None, with_hidden=False)
        at = row[:, None], place
        out.mask[at] = True
        out.role[at] = role
        out.origin[at] = out.place[at] = -1
        out.block[at] = 0
        out.size = None if out.size is None else out.size.index_put(at, out.size.new_ones(()))
        out.image[at] = self.image[row, column][:, None]
        # in a grid (M-RoPE) an image ends where its height or width does, as the text behind it has it
        end = self.position[-2:].flatten(1)[:, index].masked_fill(~real, -1).amax((0, 2))
        out.position[:, at[0], at[1]] = (end + 1 + m * before[row, column])[:, None] + steps
        flat = old + length * torch.arange(rows, device=dev)[:, None]
        new = rows * length + steps + (m * torch.arange(count, device=dev)[:, None] if embeddings.ndim == 3 else 0)
        flat[at] = new.expand(count, m)
        shift = m * total if self.shift is None else self.shift + m * total
        return dataclasses.replace(out, hidden=flat[..., None], shift=shift)._from_pool(self._with(embeddings))

    def rewrite(self, values: Tensor, where: Tensor) -> TokenSequence:
        """New hidden states for some visual tokens, which stay in their places.

        Args:
            values: [I, N, D] (images as in `images`).
            where: [I, N] bool, which of them; the others stay what they are.
        """
        index, real = self.images
        rows = index[where & real]
        hidden = self.hidden.flatten(0, 1).index_copy(0, rows, values[where & real].to(self.hidden.dtype))
        origin = self.origin.flatten().index_fill(0, rows, -1)
        return dataclasses.replace(self, hidden=hidden.view_as(self.hidden), origin=origin.view_as(self.origin))

    def replace(self, embeddings: Tensor) -> TokenSequence:
        """Puts M tokens in the place of each image's visual tokens, with positions as if the image had only ever had M.

        Args:
            embeddings: [I, M, D] (images as in `images`).
        """
        rows, length, _ = self.hidden.shape
        require("new tokens", embeddings, (len(self.images[0]), None, self.hidden.shape[-1]))
        count, m = embeddings.shape[:2]
        dev, flat = self.mask.device, len(self.position) == 1
        source = torch.arange(rows * length, device=dev).view(rows, length, 1)
        view = dataclasses.replace(self, hidden=source, compact=flat, deep=None)
        marked = rows * length + torch.arange(count * m, device=dev).view(count, m, 1)
        if not flat:
            view = closed(view)
        out = view.insert(marked, role=VISUAL)
        new = out.hidden[..., 0] >= rows * length
        out = out.keep(new | (out.role != VISUAL))
        return dataclasses.replace(out, compact=self.compact, deep=self.deep)._from_pool(self._with(embeddings))

    def restored(self, several: int) -> TokenSequence:
        """Every token at the position that it has in the user's sequence, whatever is gone, and a merged one at those
        of `several` of its members at once, each in channels of its own. What a method made stands where the token
        before it does.
        """
        column = torch.arange(self.mask.shape[1], device=self.mask.device)
        stands = torch.where(self.place >= 0, column, 0).cummax(1).values
        place = self.place.gather(1, stands).clamp(min=0)
        position = self.home.gather(2, place.expand_as(self.position))
        return dataclasses.replace(self, position=position, shift=self.home_shift, compact=False, several=several)

    # ------------------------------------------------------------------ mechanics
    def _take(
        self,
        order: Tensor,
        mask: Tensor,
        position: Tensor,
        shift: Tensor | None,
        with_hidden: bool = True,
        padded: bool = True,
    ) -> TokenSequence:
        rows, length = self.mask.shape
        hidden, deep = self.hidden, self.deep
        if with_hidden:
            flat = (order + length * torch.arange(rows, device=order.device)[:, None]).flatten()
            # index_select copies whole rows, and its backward is one index_add: both cheaper than an expanded gather
            hidden = hidden.flatten(0, 1).index_select(0, flat).view(*order.shape, hidden.shape[-1])
            if deep is not None:
                deep = deep.flatten(0, 1).index_select(0, flat).view(*order.shape, *deep.shape[2:])
        position = position.gather(2, order.expand(position.shape[0], -1, -1))
        said = {name: getattr(self, name).gather(1, order) for name in ("role", "origin", "place", "block", "image")}
        said |= {"hidden": hidden, "mask": mask, "position": position, "shift": shift, "deep": deep}
        said["size"] = None if self.size is None else self.size.gather(1, order)
        return dataclasses.replace(self, padded=padded, **said)

    def _holder(self, members: Tensor, into: Tensor) -> Tensor:
        """`holder` [B, T] when the tokens at `members` [n] (of B·L) are parts of those at the places `into` [n]."""
        width = self.holder.shape[1]
        row, place = torch.div(members, self.mask.shape[1], rounding_mode="floor"), self.place.flatten()[members]
        # Column 0 stands for the place -1, so that no token's own place has to be looked for.
        moved = torch.arange(-1, width, device=members.device).repeat(len(self.holder), 1)
        moved[row, place + 1] = torch.where(place >= 0, into, -1)
        return moved.gather(1, self.holder + 1)

    def _whole(self) -> Tensor:
        """[B·L, D], or [B·L, (1 + S)·D]: hidden states, and behind them what is still to be added."""
        hidden = self.hidden.flatten(0, 1)
        return hidden if self.deep is None else torch.cat([hidden, self.deep.flatten(2).flatten(0, 1)], 1)

    def _with(self, embeddings: Tensor) -> Tensor:
        """`_whole`, and in the same form what a method made, [..., D], to which nothing will be added."""
        whole = self._whole()
        new = embeddings.reshape(-1, embeddings.shape[-1]).to(whole.dtype)
        return torch.cat([whole, torch.nn.functional.pad(new, (0, whole.shape[1] - new.shape[1]))])

    def _from_pool(self, pool: Tensor) -> TokenSequence:
        """`self`, whose `hidden` holds row numbers [B, L, 1], with the rows of `pool` (see `_whole`) instead."""
        index = self.hidden[..., 0]
        rows = pool.index_select(0, index.flatten()).unflatten(0, index.shape)
        if self.deep is None:
            return dataclasses.replace(self, hidden=rows)
        width = rows.shape[-1] // (1 + self.deep.shape[2])
        deep = rows[..., width:].unflatten(-1, (-1, width))
        return dataclasses.replace(self, hidden=rows[..., :width], deep=deep)
