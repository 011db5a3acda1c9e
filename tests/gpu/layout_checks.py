"""check_plugins.py's checks of the kernels in plugins/layout_kernels.py: to the bit or against float64, from poisoned
outputs with a guard band behind them, and a broken call each."""

import functools

import kernel_cases as cases
import layout_kernels as kernels
import torch
from matrix_checks import DEVICE, FLOAT16_FACTOR


def check_layout_kernels(checks, library, small: bool) -> None:
    """`checks`: check_plugins.Checks."""
    flattened = [(6, 128, [(32, 56), (16, 28), (8, 14), (4, 7)], True), (1, 24, [(5, 9)], False)]
    flattened += [] if small else [(6, 256, cases.PYRAMID, True), (1, 256, [(200, 200)], False)]
    for images, channels, shapes, embeds in flattened:
        case = kernels.flatten_case(DEVICE, images, channels, shapes, embeds)
        expected = kernels.flatten_reference(**case)
        name = f"{images} x {len(shapes)} maps of {channels} channels to rows"
        checks.identical(name, functools.partial(kernels.flatten_maps, library, **case), expected)
        turned = [x.roll(1, 3).contiguous(memory_format=torch.channels_last) for x in case["maps"]]
        checks.must_differ(name, kernels.flatten_maps(library, turned, case["embeds"]), expected.double())
    sampled = [((40, 40), 128, 999), ((5, 9), 24, 70), ((7, 3), 8, None)]
    sampled += [] if small else [((200, 200), 256, 40000), ((200, 200), 256, None)]
    for shape, channels, points in sampled:
        case = kernels.sample_case(DEVICE, shape, channels, points)
        expected = kernels.sample_reference(**case)
        bound = FLOAT16_FACTOR * max(cases.rounding_noise(expected, torch.float16), 1e-4)
        name = f"map {shape} of {channels} channels from rows{'' if points is None else f', {points} samples'}"
        call = functools.partial(kernels.sample_map, library, **case)
        checks.guarded(name, call, expected, torch.float16, bound)
        moved = {**case, "rows": case["rows"].roll(1, 0)}
        checks.must_differ(name, kernels.sample_map(library, **moved), expected)
