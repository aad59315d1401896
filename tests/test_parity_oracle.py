"""Parity against an oracle that is written here from the field upwards and shares nothing with the library.

The oracle: GF(2^8) by logarithms to the base 2 modulo 0x11d; parity row i, column j is 1 / ((k + i) xor j); a loss is
undone by inverting the rows of the generator matrix that are left (Gauss and Jordan).
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest

from manifests.config import ECScheme
from stages.erasure import STRIPE, ErasureCoder
from stages.errors import StageError, TooFewPieces

POLYNOMIAL = 0x11D
Bytes = npt.NDArray[np.uint8]
Matrix = list[list[int]]

SCHEMES = [ECScheme(1, 2), ECScheme(2, 1), ECScheme(4, 2), ECScheme(10, 4)]
LENGTHS = [64, 192, 4096, 16384, STRIPE, STRIPE + 64, 2 * STRIPE + 4032]


def _tables() -> tuple[Bytes, npt.NDArray[np.int64]]:
    exp, log = np.zeros(510, np.uint8), np.zeros(256, np.int64)
    value = 1
    for power in range(255):
        exp[power] = exp[power + 255] = value
        log[value] = power
        value <<= 1
        if value & 0x100:
            value ^= POLYNOMIAL
    return exp, log


EXP, LOG = _tables()


def multiply(a: int, b: int) -> int:
    return int(EXP[LOG[a] + LOG[b]]) if a and b else 0


def invert(a: int) -> int:
    return int(EXP[255 - LOG[a]])


def scale(a: int, data: Bytes) -> Bytes:
    """`a` times each byte of `data`."""
    if not a:
        return np.zeros_like(data)
    return np.where(data == 0, 0, EXP[LOG[a] + LOG[data]]).astype(np.uint8)


def combine(row: list[int], pieces: Bytes) -> Bytes:
    """The sum of `pieces`, each times its entry of `row`."""
    total = np.zeros(pieces.shape[1], np.uint8)
    for factor, piece in zip(row, pieces, strict=True):
        total ^= scale(factor, piece)
    return total


def generator_matrix(scheme: ECScheme) -> Matrix:
    """k + m rows of k: the identity, then the Cauchy rows."""
    k, m = scheme.k, scheme.m
    identity = [[int(i == j) for j in range(k)] for i in range(k)]
    return identity + [[invert((k + i) ^ j) for j in range(k)] for i in range(m)]


def inverse(matrix: Matrix) -> Matrix:
    """Gauss and Jordan over the field; a matrix without an inverse ends in StopIteration."""
    size = len(matrix)
    rows = [list(row) + [int(i == j) for j in range(size)] for i, row in enumerate(matrix)]
    for column in range(size):
        pivot = next(i for i in range(column, size) if rows[i][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        factor = invert(rows[column][column])
        rows[column] = [multiply(factor, value) for value in rows[column]]
        for i in range(size):
            if i != column and rows[i][column]:
                factor = rows[i][column]
                rows[i] = [a ^ multiply(factor, b) for a, b in zip(rows[i], rows[column], strict=True)]
    return [row[size:] for row in rows]


def random_pieces(scheme: ECScheme, length: int) -> Bytes:
    return np.random.default_rng([scheme.k, scheme.m, length]).integers(0, 256, (scheme.k, length), np.uint8)


def oracle_code_word(scheme: ECScheme, data: Bytes) -> Bytes:
    """All k + m pieces by the oracle."""
    return np.stack([combine(row, data) for row in generator_matrix(scheme)])


def oracle_decode(scheme: ECScheme, pieces: dict[int, Bytes]) -> Bytes:
    """The k data pieces from the first k of `pieces`, by the oracle."""
    chosen = sorted(pieces)[: scheme.k]
    matrix = generator_matrix(scheme)
    left = np.stack([pieces[index] for index in chosen])
    return np.stack([combine(row, left) for row in inverse([matrix[index] for index in chosen])])


def coder_parity(coder: ErasureCoder, data: Bytes) -> Bytes:
    """Parity pieces of `data` by the code under test; its target holds rubbish before."""
    length = data.shape[1]
    target = bytearray(b"\xa5" * (coder.scheme.m * length))
    coder.parity(memoryview(data.tobytes()), length, memoryview(target))
    return np.frombuffer(target, np.uint8).reshape(coder.scheme.m, length)


def losses(scheme: ECScheme) -> list[tuple[int, ...]]:
    """Every loss of 1 to m pieces; where there are many, those at both ends and a sample of the others."""
    every = [lost for count in range(1, scheme.m + 1) for lost in combinations(range(scheme.total_shards), count)]
    if len(every) <= 64:
        return every
    picked = np.random.default_rng(7).choice(np.arange(1, len(every) - 1), 62, replace=False).tolist()
    return [every[0], *(every[number] for number in sorted(picked)), every[-1]]


def test_the_field_of_the_oracle_is_the_one_of_its_definition() -> None:
    """Products by tables equal products by shift and reduce, for all pairs."""

    def slow(a: int, b: int) -> int:
        product = 0
        for bit in range(8):
            if b >> bit & 1:
                product ^= a << bit
        for bit in range(14, 7, -1):
            if product >> bit & 1:
                product ^= POLYNOMIAL << (bit - 8)
        return product

    assert all(multiply(a, b) == slow(a, b) for a in range(256) for b in range(a, 256))
    assert all(multiply(a, invert(a)) == 1 for a in range(1, 256))


def test_every_four_rows_of_the_4_2_matrix_have_an_inverse() -> None:
    matrix = generator_matrix(ECScheme(4, 2))
    for rows in combinations(matrix, 4):
        product = [
            [np.bitwise_xor.reduce([multiply(row[i], column[j]) for i, column in enumerate(rows)]) for j in range(4)]
            for row in inverse(list(rows))
        ]
        assert product == [[int(i == j) for j in range(4)] for i in range(4)]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_parity_is_that_of_the_oracle(scheme: ECScheme, length: int) -> None:
    data = random_pieces(scheme, length)
    expected = oracle_code_word(scheme, data)[scheme.k :]
    np.testing.assert_array_equal(coder_parity(ErasureCoder(scheme), data), expected)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_parity_of_single_ones_is_the_cauchy_matrix(scheme: ECScheme) -> None:
    """Position j of data piece j holds a one, so position j of parity piece i is the matrix entry itself."""
    data = np.zeros((scheme.k, 64), np.uint8)
    data[np.arange(scheme.k), np.arange(scheme.k)] = 1
    parity = coder_parity(ErasureCoder(scheme), data)
    assert parity[:, : scheme.k].tolist() == generator_matrix(scheme)[scheme.k :]
    assert not parity[:, scheme.k :].any()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_every_loss_that_the_scheme_promises_is_decoded(scheme: ECScheme) -> None:
    coder, length = ErasureCoder(scheme), 192
    data = random_pieces(scheme, length)
    whole = oracle_code_word(scheme, data)
    for lost in losses(scheme):
        left = {index: whole[index] for index in range(scheme.total_shards) if index not in lost}
        np.testing.assert_array_equal(oracle_decode(scheme, left), data, err_msg=f"oracle, lost {lost}")
        decoded = coder.decode({index: piece.tobytes() for index, piece in left.items()})
        assert decoded == [piece.tobytes() for piece in data], f"lost {lost}"


def test_all_losses_of_4_2_are_tried() -> None:
    assert len(losses(ECScheme(4, 2))) == 6 + 15


@pytest.mark.parametrize("length", [64, 16384])
def test_the_oracle_decodes_what_the_library_encoded(length: int) -> None:
    scheme = ECScheme(4, 2)
    data = random_pieces(scheme, length)
    parity = coder_parity(ErasureCoder(scheme), data)
    left = {1: data[1], 3: data[3], 4: parity[0], 5: parity[1]}
    np.testing.assert_array_equal(oracle_decode(scheme, left), data)


def test_a_sub_range_of_a_row_decodes_from_the_same_sub_range_of_others() -> None:
    scheme, length, cut = ECScheme(4, 2), 16384, slice(4096, 4096 + 640)
    data = random_pieces(scheme, length)
    whole = np.concatenate([data, coder_parity(ErasureCoder(scheme), data)])
    decoded = ErasureCoder(scheme).decode({index: whole[index, cut].tobytes() for index in (0, 2, 4, 5)})
    assert decoded == [piece[cut].tobytes() for piece in data]


def test_pieces_come_in_any_order_and_more_than_enough() -> None:
    scheme = ECScheme(4, 2)
    data = random_pieces(scheme, 64)
    whole = oracle_code_word(scheme, data)
    decoded = ErasureCoder(scheme).decode({index: whole[index].tobytes() for index in (5, 3, 1, 4, 2)})
    assert decoded == [piece.tobytes() for piece in data]


def test_without_parity_a_pack_is_plain_slices() -> None:
    scheme = ECScheme(3, 0)
    coder, data = ErasureCoder(scheme), random_pieces(scheme, 128)
    assert coder_parity(coder, data).size == 0
    assert coder.decode(dict(enumerate(piece.tobytes() for piece in data))) == [piece.tobytes() for piece in data]
    with pytest.raises(TooFewPieces):
        coder.decode({0: data[0].tobytes(), 2: data[2].tobytes()})


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme.k > 1], ids=str)
def test_fewer_than_k_pieces_are_refused(scheme: ECScheme) -> None:
    whole = oracle_code_word(scheme, random_pieces(scheme, 64))
    few = {index: whole[index].tobytes() for index in range(scheme.m + 1, scheme.total_shards)}
    assert len(few) == scheme.k - 1
    with pytest.raises(TooFewPieces):
        ErasureCoder(scheme).decode(few)


def test_no_pieces_are_refused() -> None:
    with pytest.raises(TooFewPieces):
        ErasureCoder(ECScheme(1, 2)).decode({})


@pytest.mark.parametrize("lengths", [(64, 64, 64, 128), (128, 64, 64, 64), (0, 0, 0, 0), (65, 65, 65, 65)], ids=str)
def test_pieces_of_unequal_or_odd_length_are_refused(lengths: tuple[int, ...]) -> None:
    pieces = {index + 1: bytes(length) for index, length in enumerate(lengths)}
    with pytest.raises(StageError):
        ErasureCoder(ECScheme(4, 2)).decode(pieces)
