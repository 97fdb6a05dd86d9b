"""BAIT: the batch after which the last layer is known best where the pool needs it.

For an example with features h and probabilities p the Fisher information of the last layer's
weights is (diag p - p p') (x) h h' = V V' with V = A (x) h and A = diag(sqrt p) - p sqrt(p)', C
columns of length C D. So no example's C D x C D matrix is ever formed: what adding or removing one
does to the objective needs V' M^-1 V and V' M^-1 F M^-1 V only, C x C matrices that are kept for
every example and brought up to date by the factors of the one that was added.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from fastbadge.errors import InputError
from fastbadge.strategies.registry import PoolView, register

# Five matrices of C D x C D in float64, 2.7 GB, and three more while they are made anew; two of
# C x C for every example, 0.5 GB in float32 or twice that in float64.
_MOST_COLUMNS = 8192
_MOST_ENTRIES = 1 << 26
_TILE_ROWS = 512

# Examples whose gain is computed at once, those with the highest bound first.
_BLOCK = 512

# In multiples of the regularization: what labelled and added examples may tell in all (picks are
# those of exact arithmetic in 68 of 68 pools up to here, in 56 of 68 at ten times as much); and
# between what and what the largest S = V' M^-1 V (its trace) fits float32.
_MOST_TOLD = 1e9
_FLOAT32 = (1e-6, 1e3)

# Gains whose parts have shrunk from x end with errors of half an eps x at most (measured, for S up
# to 1,000); the screen allows for more. It is given up where that is more than a hundredth of the
# best gain, or leaves more examples than this for float64 to decide among.
_ROUNDING = 4
_MOST_ERROR = 1e-2
_SETTLED = 64

# Gains that have shrunk so far are made anew: in float32 where it helps, in float64 in good time.
_FADED = {torch.float32: 1 / 8, torch.float64: 1e-6}

# Gains that differ by less are a tie.
_TIE = 1e-12


def _check(regularization: float) -> None:
    if not 0 < regularization < math.inf:
        raise InputError(f"bait: regularization is {regularization}; expected a positive number")


@register("bait", needs=("probabilities", "features", "labeled"), check=_check)
def bait(view: PoolView, k: int, *, generator: Generator, regularization: float = 1.0) -> Tensor:
    """Most Fisher information where the pool needs it, of the last layer; regularization=1.

    BAIT (Ash et al., NeurIPS 2021, Algorithm 1): minimises tr(M^-1 F), F the mean Fisher
    information of the last layer over all examples, M that summed over labelled and picked ones
    plus `regularization` times the identity. Greedy: min(2 k, N) examples are added, then those are
    taken out again, one by one, whose loss matters least. Deterministic. The picks are in the order
    in which they were added.

    Cost: 3 N (C D)^2 once, then 2 N C^2 (C + D) + 3 C (C D)^2 for each of the 2 k steps; memory
    2 N C^2 and 5 (C D)^2 numbers. What is there for every example is float32 and chooses the few
    among whom float64 decides; where float32 cannot tell them apart (many ties, information far
    above the regularization) all of it is float64, at some twice the time. C D beyond 8,192 and
    N C^2 beyond 67 million are refused, and so is a regularization below 1e-9 of the information
    of labelled and added examples (sums of (1 - sum p^2) |h|^2), which float64 cannot hold.

    Of ties the lowest position is added, and the last one added is taken out; a duplicate of a pick
    gains less than it did, none is excluded; k = N gives every row. With one class nothing is
    informative, and all tie.
    """
    assert view.probabilities is not None and view.features is not None
    _check(regularization)
    pool = _Examples.of(view)
    known = None if view.labeled is None else _Examples.of(view.labeled)
    _check_size(pool)
    _check_scale(pool, known, min(2 * k, view.size), regularization)
    C, D, total = pool.root_NC.shape[1], pool.feature_ND.shape[1], view.size
    needed = pool.information()
    given = regularization * torch.eye(C * D, dtype=needed.dtype, device=needed.device)
    if known is not None:
        of_known = known.information()
        needed, given, total = needed + of_known, given + of_known, total + len(known)
    if view.task == "multiclass":
        # All logits shifted alike are the same probabilities: along 1 (x) h nothing is told or
        # needed, M is free, and 1 / regularization would only drown the rest in its rounding.
        shift = float(needed.diagonal().max()) / C
        given.view(C, D, C, D).diagonal(dim1=1, dim2=3).add_(shift)
    start = _State.of(given, needed.div_(total))
    state, added = _forward(pool, start, min(2 * k, view.size))
    return torch.tensor(_backward(pool, state, added, k))


def _forward(pool: _Examples, start: _State, count: int) -> tuple[_State, list[int]]:
    state, gains = start, _Gains.of(pool, start)
    added: list[int] = []
    while len(added) < count:
        gain_of, error = gains.best_to_add(added)
        rows = list(gain_of)
        looks = None
        if gains.exact:
            if not gains.faded():
                rows = [_first_best(gain_of)]
                looks = state.looks([pool.factor(rows[0])])
        elif len(rows) <= _SETTLED and error <= _MOST_ERROR * max(gain_of.values()):
            looks = state.looks([pool.factor(row) for row in rows])
            settled = {row: look.gain() for row, look in zip(rows, looks, strict=True)}
            if any(abs(gain_of[row] - settled[row]) > error for row in rows):
                looks = None
            gain_of = settled
        if looks is None:
            if gains.exact or not gains.faded():
                state = start.joined(pool.subset(added))
                gains = _Gains.of(pool, state, exact=True)
            else:
                gains = _Gains.of(pool, state)
            continue
        added.append(_first_best(gain_of))
        gains.update(state.change(looks[rows.index(added[-1])], sign=-1), sign=-1)
    # What leaves is told from what stays by 1 - S, so the rounding of the way here has to go.
    return (start.joined(pool.subset(added)) if gains.exact else state), added


def _first_best(gain_of: dict[int, float]) -> int:
    most = max(gain_of.values())
    return min(row for row, gain in gain_of.items() if gain >= most - _TIE * abs(most))


def _backward(pool: _Examples, state: _State, added: list[int], k: int) -> list[int]:
    part = pool.subset(added)
    losses = _Gains.of(part, state, exact=True)
    left = list(range(len(added)))
    while len(left) > k:
        loss_L = losses.traces(torch.tensor(left), sign=-1)
        least = loss_L.min()
        i = left.pop(int((loss_L <= least + _TIE * least.abs()).nonzero()[-1]))
        losses.update(state.change(state.looks([part.factor(i)])[0], sign=1), sign=1)
    return [added[i] for i in left]


def _check_size(pool: _Examples) -> None:
    N, C = len(pool), pool.root_NC.shape[1]
    if pool.num_columns > _MOST_COLUMNS:
        raise InputError(
            f"bait holds matrices of C D x C D, and C D is {pool.num_columns:,}; at most "
            f"{_MOST_COLUMNS:,} here: use badge, which needs none"
        )
    if N * C**2 > _MOST_ENTRIES:
        raise InputError(
            f"bait holds matrices of C x C for every example, N C^2 = {N * C**2:,} numbers; at "
            f"most {_MOST_ENTRIES:,} fit: pass a part of the pool, or use badge"
        )


def _check_scale(
    pool: _Examples, known: _Examples | None, count: int, regularization: float
) -> None:
    told = count * float(pool.told().max()) + (float(known.told().sum()) if known else 0.0)
    if told > _MOST_TOLD * regularization:
        raise InputError(
            f"bait: regularization is {regularization:g}, beside information of {told:.1e} lost in "
            f"float64; pass regularization={1.01 * told / _MOST_TOLD:.2g} or more, or scale the "
            "features down"
        )


@dataclass(frozen=True, eq=False, slots=True)
class _Examples:
    """Features h, and A = diag(root) - mean root'; mean is 0 where outputs are independent."""

    feature_ND: Tensor
    root_NC: Tensor
    mean_NC: Tensor

    @classmethod
    def of(cls, view: PoolView) -> _Examples:
        assert view.probabilities is not None and view.features is not None
        everything = slice(0, view.size)
        prob_NC = view.probabilities(everything)
        feature_ND = view.features(everything).to(prob_NC)
        if view.task == "multiclass":
            return cls(feature_ND, prob_NC.sqrt(), prob_NC)
        return cls(feature_ND, (prob_NC * (1 - prob_NC)).sqrt(), torch.zeros_like(prob_NC))

    def __len__(self) -> int:
        return len(self.feature_ND)

    @property
    def num_columns(self) -> int:
        """P = C D."""
        return self.root_NC.shape[1] * self.feature_ND.shape[1]

    def tiles(self) -> Iterator[slice]:
        return (slice(i, min(i + _TILE_ROWS, len(self))) for i in range(0, len(self), _TILE_ROWS))

    def subset(self, rows: list[int]) -> _Examples:
        row_B = torch.tensor(rows, dtype=torch.int64, device=self.feature_ND.device)
        return _Examples(self.feature_ND[row_B], self.root_NC[row_B], self.mean_NC[row_B])

    def to(self, dtype: torch.dtype) -> _Examples:
        return _Examples(self.feature_ND.to(dtype), self.root_NC.to(dtype), self.mean_NC.to(dtype))

    def factor(self, row: int) -> tuple[Tensor, Tensor]:
        """H [D] and A [C, C] of one example."""
        root_C, mean_C = self.root_NC[row], self.mean_NC[row]
        return self.feature_ND[row], root_C.diag() - torch.outer(mean_C, root_C)

    def left(self, rows: slice, matrix_BCX: Tensor) -> Tensor:
        """A' times a matrix for each of some examples."""
        root_BC1, mean_B1C = self.root_NC[rows][:, :, None], self.mean_NC[rows][:, None, :]
        return (matrix_BCX - mean_B1C @ matrix_BCX).mul_(root_BC1)

    def told(self) -> Tensor:
        """tr(V V') of every example: [N]."""
        diagonal_NC = self.root_NC.square() - self.mean_NC.square()
        return diagonal_NC.sum(dim=1) * self.feature_ND.square().sum(dim=1)

    def information(self) -> Tensor:
        """Sum of the Fisher informations, float64 [P, P]."""
        C, D = self.root_NC.shape[1], self.feature_ND.shape[1]
        total = self.feature_ND.new_zeros(C, D, C, D)
        # (A A')_cd = [c = d] root_c^2 - mean_c mean_d.
        for c in range(C):
            for d in range(c, C):
                weight_N = -self.mean_NC[:, c] * self.mean_NC[:, d]
                if c == d:
                    weight_N = weight_N + self.root_NC[:, c] ** 2
                for rows in self.tiles():
                    feature_BD = self.feature_ND[rows]
                    total[c, :, d].addmm_((feature_BD * weight_N[rows, None]).T, feature_BD)
                total[d, :, c] = total[c, :, d]
        return total.view(C * D, C * D)


@dataclass(frozen=True, eq=False, slots=True)
class _Look:
    """What one example sees of the state: M^-1 V, Q V [P, C], V' M^-1 V, V' Q V [C, C]."""

    inverse_PC: Tensor
    spread_PC: Tensor
    own_CC: Tensor
    spread_CC: Tensor

    def gain(self) -> float:
        return float(_traces(self.own_CC[None], self.spread_CC[None], sign=1))


@dataclass(frozen=True, eq=False, slots=True)
class _State:
    """M^-1 and Q = M^-1 F M^-1, float64 [P, P], as examples join and leave; M before, and F."""

    inverse: Tensor
    spread: Tensor
    given: Tensor
    needed: Tensor

    @classmethod
    def of(cls, given: Tensor, needed: Tensor) -> _State:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(given))
        return cls(inverse, inverse @ needed @ inverse, given, needed)

    def joined(self, examples: _Examples) -> _State:
        """What `of` makes of M and some examples: without the rounding of one after the other."""
        return _State.of(self.given + examples.information(), self.needed)

    def looks(self, factors: list[tuple[Tensor, Tensor]]) -> list[_Look]:
        """What some examples see; the matrices, whose size is the time, are read once for all."""
        feature_DB = torch.stack([feature_D for feature_D, _ in factors], dim=1)
        D, C = len(feature_DB), len(factors[0][1])
        product_PCB = [X.view(-1, C, D) @ feature_DB for X in (self.inverse, self.spread)]
        looks = []
        for b, (feature_D, root_CC) in enumerate(factors):
            inverse_PC, spread_PC = (X[:, :, b] @ root_CC for X in product_PCB)
            own_CC, spread_CC = (
                root_CC.T @ (X_PC.view(C, D, C).mT @ feature_D) for X_PC in (inverse_PC, spread_PC)
            )
            looks.append(_Look(inverse_PC, spread_PC, own_CC, spread_CC))
        return looks

    def change(self, look: _Look, sign: int) -> tuple[Tensor, Tensor]:
        """Let an example in (sign -1) or out (+1); W and Y [P, C] with which both changed.

        M^-1 changes by sign W W' and Q by sign (Y W' + W Y') (Woodbury).
        """
        solve = torch.linalg.solve_triangular
        lower = _lower(look.own_CC, -sign)
        W_PC = solve(lower.T, look.inverse_PC, upper=True, left=False)
        U_PC = solve(lower.T, look.spread_PC, upper=True, left=False)
        inner_CC = solve(lower, look.spread_CC, upper=False)
        inner_CC = solve(lower.T, inner_CC, upper=True, left=False)
        Y_PC = U_PC.addmm_(W_PC, inner_CC, alpha=sign / 2)
        self.inverse.addmm_(W_PC, W_PC.T, alpha=sign)
        self.spread.addmm_(Y_PC, W_PC.T, alpha=sign).addmm_(W_PC, Y_PC.T, alpha=sign)
        return W_PC, Y_PC


@dataclass(frozen=True, eq=False, slots=True)
class _Gains:
    """For every example S = V' M^-1 V and R = V' Q V, [N, C, C]; their largest traces at first."""

    pool: _Examples
    own_NCC: Tensor
    spread_NCC: Tensor
    most_told: float
    most_gain: float

    @classmethod
    def of(cls, pool: _Examples, state: _State, *, exact: bool = False) -> _Gains:
        """In float64 if `exact`, or if they do not fit float32."""
        part = pool if exact else pool.to(torch.float32)
        own_NCC = _form(part, state.inverse)
        most_told = float(_diagonal_sums(own_NCC).max())
        if not exact and not _FLOAT32[0] < most_told < _FLOAT32[1]:
            return cls.of(pool, state, exact=True)
        spread_NCC = _form(part, state.spread)
        return cls(part, own_NCC, spread_NCC, most_told, float(_diagonal_sums(spread_NCC).max()))

    @property
    def exact(self) -> bool:
        return self.own_NCC.dtype == torch.float64

    def faded(self) -> bool:
        """Whether they are so much smaller than at first that rounding could show."""
        most = float(_diagonal_sums(self.spread_NCC).max())
        return most < _FADED[self.spread_NCC.dtype] * self.most_gain

    def best_to_add(self, added: list[int]) -> tuple[dict[int, float], float]:
        """Rows whose joining may lower the objective most, their gains, and the error of these."""
        # tr((1 + S)^-1 R) is at most tr R, so rows below the best gain found need no look.
        bound_N = _diagonal_sums(self.spread_NCC)
        bound_N[added] = -torch.inf
        gain_N = torch.full_like(bound_N, -torch.inf)
        best_gain, error = -torch.inf, 0.0
        for row_B in torch.split(bound_N.argsort(descending=True, stable=True), _BLOCK):
            row_B = row_B[(bound_N[row_B] >= best_gain - 2 * error) & (bound_N[row_B] > -torch.inf)]
            if not len(row_B):
                break
            gain_N[row_B] = self.traces(row_B, sign=1)
            best_gain = float(gain_N.max())
            error = self._error(best_gain)
        close_B = (gain_N >= best_gain - 2 * error).nonzero()[:, 0]
        return dict(zip(close_B.tolist(), gain_N[close_B].tolist(), strict=True)), error

    def _error(self, gain: float) -> float:
        """How far a gain may be off; in float64, what counts as a tie."""
        if self.exact:
            return _TIE * abs(gain)
        return (
            _ROUNDING * torch.finfo(torch.float32).eps * max(self.most_gain, self.most_told * gain)
        )

    def update(self, change: tuple[Tensor, Tensor], sign: int) -> None:
        """Bring all up to date with what `_State.change` gave."""
        C, D = change[0].shape[1], self.pool.feature_ND.shape[1]
        # [P, 2 C] as [D, C 2 C], so that features times it are all examples' matrices.
        change_PX = torch.cat(change, dim=1).to(self.own_NCC.dtype)
        change_DX = change_PX.view(C, D, 2 * C).transpose(0, 1).reshape(D, -1)
        for rows in self.pool.tiles():
            change_BCX = (self.pool.feature_ND[rows] @ change_DX).view(-1, C, 2 * C)
            W_BCC, Y_BCC = torch.split(self.pool.left(rows, change_BCX), C, dim=2)
            self.own_NCC[rows].baddbmm_(W_BCC, W_BCC.mT, alpha=sign)
            self.spread_NCC[rows].baddbmm_(Y_BCC, W_BCC.mT, alpha=sign)
            self.spread_NCC[rows].baddbmm_(W_BCC, Y_BCC.mT, alpha=sign)

    def traces(self, row_B: Tensor, sign: int) -> Tensor:
        """What joining (1) would gain, or leaving (-1) cost, for some rows: [B]."""
        row_B = row_B.to(self.own_NCC.device)
        return _traces(self.own_NCC[row_B], self.spread_NCC[row_B], sign)


def _diagonal_sums(matrix_NCC: Tensor) -> Tensor:
    return matrix_NCC.diagonal(dim1=1, dim2=2).sum(dim=1)


def _traces(own_BCC: Tensor, spread_BCC: Tensor, sign: int) -> Tensor:
    """tr((1 + sign S)^-1 R): [B]."""
    inverse_BCC: Tensor = torch.cholesky_inverse(_lower(own_BCC, sign))
    trace_B: Tensor = (inverse_BCC * spread_BCC).sum(dim=(1, 2))
    return trace_B


def _lower(own_BCC: Tensor, sign: int) -> Tensor:
    identity = torch.eye(own_BCC.shape[-1], dtype=own_BCC.dtype, device=own_BCC.device)
    lower_BCC: Tensor = torch.linalg.cholesky(identity + sign * own_BCC)
    return lower_BCC


def _form(pool: _Examples, matrix_PP: Tensor) -> Tensor:
    """V' matrix V of every example, for a symmetric matrix: float64 [N, C, C]."""
    C, D = pool.root_NC.shape[1], pool.feature_ND.shape[1]
    matrix_CDP = matrix_PP.to(pool.feature_ND.dtype).view(C, D, C * D)
    form_NCC = pool.feature_ND.new_empty(len(pool), C, C)
    for rows in pool.tiles():
        feature_BD = pool.feature_ND[rows]
        form_BCC = form_NCC[rows]
        for c in range(C):  # the upper half
            product_BCD = (feature_BD @ matrix_CDP[c][:, c * D :]).view(-1, C - c, D)
            form_BCC[:, c, c:] = (product_BCD @ feature_BD[:, :, None])[:, :, 0]
            form_BCC[:, c + 1 :, c] = form_BCC[:, c, c + 1 :]
        half_BCC = pool.left(rows, form_BCC)  # A' H; then again from the right: (A' (A' H)')
        form_NCC[rows] = pool.left(rows, half_BCC.mT)
    return form_NCC
