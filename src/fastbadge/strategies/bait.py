"""BAIT: the batch after which the last layer is known best where the pool needs it.

For an example with features h and probabilities p the Fisher information of the last layer's
weights is (diag p - p p') (x) h h' = V V' with V = A (x) h and A = diag(sqrt p) - p sqrt(p)', C
columns of length C D. So no example's C D x C D matrix is ever formed: what adding or removing one
does to the objective needs V' M^-1 V and V' M^-1 F M^-1 V only, C x C matrices that are kept for
every example and brought up to date by the factors of the one that was added.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from fastbadge.errors import InputError
from fastbadge.strategies.registry import PoolView, register

# Three matrices of C D x C D in float64, and two of C x C for every example in float32: 1.6 GB and
# 0.5 GB.
_MOST_COLUMNS = 8192
_MOST_ENTRIES = 1 << 26
_TILE_ROWS = 512

# Examples whose gain is computed at once, those with the highest bound first.
_BLOCK = 512

# Gains in float32 choose at most so many examples, whose gains in float64 decide. They have to lie
# within the first number of the best, or four times the largest error seen so far.
_SCREEN_ERROR = 1e-3
_SETTLED = 8


def _check(regularization: float) -> None:
    if not regularization > 0:
        raise InputError(f"bait: regularization is {regularization}; expected a positive number")


@register("bait", needs=("probabilities", "features", "labeled"), check=_check)
def bait(view: PoolView, k: int, *, generator: Generator, regularization: float = 1.0) -> Tensor:
    """Most Fisher information where the pool needs it, of the last layer; regularization=1.

    BAIT (Ash et al., NeurIPS 2021, Algorithm 1): minimises tr(M^-1 F), F the mean Fisher
    information of the last layer over all examples, M that summed over labelled and picked ones
    plus `regularization` times the identity. Greedy: min(2 k, N) examples are added, then those are
    taken out again, one by one, whose loss matters least. Deterministic. The picks are in the order
    in which they were added.

    Cost: 3 N (C D)^2 once, then 2 N C^2 (C + D) + 3 C (C D)^2 for each of the 2 k steps. What is
    there for every example is float32, 2 N C^2 numbers, and chooses eight at most among whom
    float64 decides; besides 3 (C D)^2 in float64. C D beyond 8,192 and N C^2 beyond 67 million are
    refused.

    Ties go to the lowest position; a duplicate of a pick gains less than it did, none is excluded;
    k = N gives every row. With one class nothing is informative, and all tie.
    """
    assert view.probabilities is not None and view.features is not None
    _check(regularization)
    pool = _Examples.of(view)
    known = None if view.labeled is None else _Examples.of(view.labeled)
    _check_size(pool)
    P = pool.num_columns
    identity = torch.eye(P, dtype=torch.float64, device=pool.feature_ND.device)
    needed, total = pool.information(), view.size
    given = identity * regularization
    if known is not None:
        of_known = known.information()
        needed, given, total = needed + of_known, given + of_known, total + len(known)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(given))
    state = _State(inverse, inverse @ (needed / total) @ inverse)
    del given, needed, identity

    added = _forward(pool, state, min(2 * k, view.size))
    return torch.tensor(_backward(pool, state, added, k))


def _forward(pool: _Examples, state: _State, count: int) -> list[int]:
    gains = _Gains.of(pool.to(torch.float32), state)
    added: list[int] = []
    margin = _SCREEN_ERROR
    while len(added) < count:
        screened = gains.best_to_add(added, margin)
        looks = dict(zip(screened, state.looks([pool.factor(r) for r in screened]), strict=True))
        settled = {row: look.gain(sign=1) for row, look in looks.items()}
        best = min(screened, key=lambda row: (-settled[row], row))
        error = max(abs(gain - settled[row]) for row, gain in screened.items())
        margin = min(1.0, max(margin, 4 * error / max(settled[best], 1e-300)))
        added.append(best)
        gains.update(state.change(looks[best], sign=-1), sign=-1)
    return added


def _backward(pool: _Examples, state: _State, added: list[int], k: int) -> list[int]:
    part = pool.subset(torch.tensor(added, device=pool.feature_ND.device))
    losses = _Gains.of(part, state)
    left = list(range(len(added)))
    while len(left) > k:
        i = left.pop(int(losses.traces(torch.tensor(left), sign=-1).argmin()))
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

    def subset(self, row_B: Tensor) -> _Examples:
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

    def gain(self, sign: int) -> float:
        return float(_traces(self.own_CC[None], self.spread_CC[None], sign))


@dataclass(frozen=True, eq=False, slots=True)
class _State:
    """M^-1 and Q = M^-1 F M^-1, float64 [P, P], as examples join and leave."""

    inverse: Tensor
    spread: Tensor

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
    """For every example S = V' M^-1 V and R = V' Q V, [N, C, C] in the pool's dtype."""

    pool: _Examples
    own_NCC: Tensor
    spread_NCC: Tensor

    @classmethod
    def of(cls, pool: _Examples, state: _State) -> _Gains:
        return cls(pool, _form(pool, state.inverse), _form(pool, state.spread))

    def best_to_add(self, added: list[int], margin: float) -> dict[int, float]:
        """Rows whose joining may lower the objective most, a few at most, and their gains."""
        # tr((1 + S)^-1 R) is at most tr R, so rows below the best gain found need no look.
        bound_N = self.spread_NCC.diagonal(dim1=1, dim2=2).sum(dim=1)
        bound_N[added] = -torch.inf
        gain_N = torch.full_like(bound_N, -torch.inf)
        best_gain = -torch.inf
        for row_B in torch.split(bound_N.argsort(descending=True, stable=True), _BLOCK):
            row_B = row_B[bound_N[row_B] >= best_gain * (1 - margin)]
            row_B = row_B[bound_N[row_B] > -torch.inf]
            if not len(row_B):
                break
            gain_N[row_B] = self.traces(row_B, sign=1)
            best_gain = max(best_gain, float(gain_N[row_B].max()))
        # Where nothing is to be gained the lowest position wins, and all others tie with it.
        close_B = (gain_N >= best_gain - margin * abs(best_gain)).nonzero()[:, 0]
        close_B = close_B[gain_N[close_B].argsort(descending=True, stable=True)[:_SETTLED]]
        return dict(zip(close_B.tolist(), gain_N[close_B].tolist(), strict=True))

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
