"""runtime/collision.py against the recorded original, and against CasADi with IPOPT on random scenes."""

import collision_plain
import numpy as np
import pytest
from support import assert_close, assert_differs, golden

from config import load_config
from runtime import collision

BASE = load_config("base_e2e")
TINY = load_config("tiny_e2e")
ATOL = 2e-6  # metres: two steps of float32 at 10 m; in 2000 random scenes the largest difference was one step


def recorded_case(index: int):
    recorded = golden("ops", "collision_optim.npz")
    occ = np.zeros((5, 200, 200), np.int32)
    cells = recorded[f"occ_nonzero_{index}"]  # (M,5): batch, step, 0, row, column
    for cell in cells:
        occ[cell[1], cell[-2], cell[-1]] = 1
    return recorded[f"traj_in_{index}"][0], occ, recorded[f"traj_out_{index}"][0]


@pytest.mark.parametrize("index", range(4))
def test_equals_the_recorded_original(index):
    plan, occ, expected = recorded_case(index)
    actual, ran = collision.optimise_plan(plan, occ, BASE)
    assert_close(actual, expected, ATOL, f"case {index}")
    assert ran == bool(occ.any())
    assert actual.dtype == np.float32


def test_broken_variants_are_caught(monkeypatch):
    plan, occ, expected = recorded_case(1)
    swapped, _ = collision.optimise_plan(plan, occ.transpose(0, 2, 1), BASE)
    assert_differs(swapped, expected, 100 * ATOL, "x and y of the obstacles swapped")
    late, _ = collision.optimise_plan(plan, np.roll(occ, 1, axis=0), BASE)
    assert_differs(late, expected, 100 * ATOL, "occupancy of another step")
    monkeypatch.setattr(collision, "cell_metres", lambda cells, middle: np.floor((cells - middle) * 0.5 + 0.25))
    floor, _ = collision.optimise_plan(plan, occ, BASE)
    assert_differs(floor, expected, 100 * ATOL, "obstacle metres rounded down, not towards zero")


def crowded_case(rng, share):
    """A plan in any direction over a map of which a share of all cells is occupied."""
    plan = np.cumsum(rng.normal(rng.uniform(-3, 3, 2), [0.2, 0.4], (6, 2)), axis=0).astype(np.float32)
    return plan, (rng.random((5, 200, 200)) < share).astype(np.int32)


def test_window_loses_no_point():
    """Around any position, on the map and off it: as many occupied cells in each place as a list of all gives."""
    rng = np.random.default_rng(3)
    _, occ = crowded_case(rng, 0.4)
    for _ in range(100):
        plan = rng.uniform(-60, 60, (6, 2)).astype(np.float32)
        plan[rng.integers(6)] = rng.choice([0.0, -5.0, 1e30, np.nan, np.inf], 2)
        with np.errstate(invalid="ignore", over="ignore"):
            metres, counts = collision.obstacles_near(plan, occ, BASE)
            expected = collision_plain.near_points(plan, occ, BASE)
        assert counts.shape == (6, 12, 12)
        for (x, y), found, points in zip(metres, counts, expected):
            rows, columns = np.nonzero(found)
            places = np.stack([x[columns], y[rows]], axis=1)
            given, numbers = np.unique(points, axis=0, return_counts=True)
            order = np.lexsort(places.T[::-1])
            np.testing.assert_array_equal(places[order], given.reshape(-1, 2))
            np.testing.assert_array_equal(found[rows, columns][order], numbers)


def test_small_maps():
    rng = np.random.default_rng(4)
    config = BASE.replace(bev_h=20, bev_w=20)
    for _ in range(20):
        plan, occ = rng.uniform(-9, 9, (6, 2)).astype(np.float32), rng.integers(0, 2, (5, 20, 24))
        expected, ran = collision_plain.optimise_plan(plan, occ, config)
        actual, same = collision.optimise_plan(plan, occ, config)
        np.testing.assert_array_equal(actual, expected)
        assert ran == same


@pytest.mark.parametrize("share", [0.01, 0.1, 0.38, 0.8])
def test_equals_the_plain_form_to_the_bit(share):
    rng = np.random.default_rng(5)
    shifted = 0
    for case in range(60):
        plan, occ = crowded_case(rng, share) if case % 3 else random_case(rng)
        expected, ran = collision_plain.optimise_plan(plan, occ, BASE)
        actual, same = collision.optimise_plan(plan, occ, BASE)
        np.testing.assert_array_equal(actual, expected, err_msg=f"case {case}")
        assert ran == same
        shifted += not np.array_equal(collision.optimise_plan(plan, np.roll(occ, 1, axis=1), BASE)[0], expected)
    assert shifted >= 30  # the same scenes with obstacles a row further


def test_equals_the_original_in_the_tiny_sequence():
    for index in range(8):
        recorded = golden("tiny", f"frame_{index}.npz")
        if "occ.seg_out" not in recorded:
            continue
        actual, ran = collision.optimise_plan(
            recorded["plan.sdc_traj_before_optim"][0], recorded["occ.seg_out"][0, :, 0], TINY
        )
        assert_close(actual, recorded["plan.sdc_traj"][0], ATOL, f"frame {index}")
        assert ran == bool(recorded["plan.collision_ran"])


def test_free_road_leaves_the_plan_alone():
    plan, occ, _ = recorded_case(0)
    actual, ran = collision.optimise_plan(plan, np.zeros_like(occ), BASE)
    np.testing.assert_array_equal(actual, plan)
    assert not ran
    far = np.zeros_like(occ)
    far[:, :10] = 1  # a wall 45 m behind
    assert not collision.optimise_plan(plan, far, BASE)[1]


def ipopt(plan, occ):
    """The original's problem, written with CasADi's Opti and solved by IPOPT."""
    casadi = pytest.importorskip("casadi")
    opti = casadi.Opti()
    position = opti.variable(2, len(plan))
    start = casadi.DM(plan.astype(np.float64)).T
    cost = casadi.sumsqr(start - position)
    everything = collision_plain.near_points(plan, occ, BASE)
    for step in range(len(plan)):
        near = everything[step].astype(np.float64)
        if len(near):
            away = [position[axis, step] - casadi.DM(near[:, axis]) for axis in (0, 1)]
            cost += 5 / 2.507 * casadi.sum1(casadi.exp(-(away[0] ** 2 + away[1] ** 2) / 2))
    opti.minimize(cost)
    opti.set_initial(position, start)
    opti.solver("ipopt", {"ipopt.print_level": 0, "print_time": 0, "ipopt.sb": "yes"})
    return np.array(opti.solve().value(position)).T


def random_case(rng):
    """A plan at up to 6 m/s and, in each step, one to four occupied rectangles around it."""
    plan = np.cumsum(rng.normal([0, rng.uniform(0, 3)], [0.1, 0.3], (6, 2)), axis=0).astype(np.float32)
    occ = np.zeros((5, 200, 200), np.int32)
    for frame in occ:
        for _ in range(rng.integers(1, 5)):
            column, row = ((plan[rng.integers(6)] + rng.normal(0, 3, 2)) / 0.5 + 100).astype(int)
            height, width = rng.integers(1, 9, 2)
            frame[
                max(row - height // 2, 0) : row + height // 2 + 1, max(column - width // 2, 0) : column + width // 2
            ] = 1
    return plan, occ


def test_equals_ipopt_on_random_scenes():
    """Same local minimum, from inside obstacles too."""
    rng = np.random.default_rng(3)
    moved, elsewhere = 0, 0
    for case in range(40):
        plan, occ = random_case(rng)
        actual, ran = collision.optimise_plan(plan, occ, BASE)
        expected = ipopt(plan, occ)
        assert_close(actual, expected, ATOL, f"case {case}")
        moved += ran and np.abs(actual - plan).max() > 0.5
        flipped, _ = collision.optimise_plan(plan, np.roll(occ, 1, axis=2), BASE)
        elsewhere += np.abs(flipped - expected).max() > 100 * ATOL
    assert moved >= 20
    assert elsewhere >= 20  # the same scenes with obstacles one cell to the right


def test_reaches_a_minimum_from_a_maximum():
    """A plan in the very middle of an obstacle: the Hessian is negative there, a bare Newton step would stay."""
    plan = np.tile(np.array([0.01, 8.02], np.float32), (6, 1))
    occ = np.zeros((5, 200, 200), np.int32)
    occ[:, 112:120, 96:104] = 1  # 4 m x 4 m around (0, 8)
    actual, ran = collision.optimise_plan(plan, occ, BASE)
    assert ran
    assert np.linalg.norm(actual - plan, axis=1).min() > 1.0
    assert_close(actual, ipopt(plan, occ), ATOL, "from a maximum")
