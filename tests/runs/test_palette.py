"""The colors of pictures: readable on light and dark, distinguishable by color-blind readers, scales in even steps."""

import math
from itertools import combinations, pairwise

import pytest

from llm_lab.runs.palette import COLORS, SERIES, STEPS, both, contrast

# How the colors of a screen look with the three kinds of color blindness (Machado, Oliveira and Fernandes, 2009).
SEEN = {
    "protanopia": ((0.152, 1.053, -0.205), (0.115, 0.786, 0.099), (-0.004, -0.048, 1.052)),
    "deuteranopia": ((0.367, 0.861, -0.228), (0.280, 0.673, 0.047), (-0.012, 0.043, 0.969)),
    "tritanopia": ((1.256, -0.077, -0.179), (-0.078, 0.931, 0.148), (0.005, 0.691, 0.304)),
}
AS_IT_IS = ((1, 0, 0), (0, 1, 0), (0, 0, 1))


def oklab(color, seen=AS_IT_IS):
    """Return a color in OKLab, where distances are differences that people see."""
    parts = (int(color[at : at + 2], 16) / 255 for at in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    mixed = [sum(share * part for share, part in zip(row, linear, strict=True)) for row in seen]
    red, green, blue = (min(max(part, 0.0), 1.0) for part in mixed)
    long = (0.4122214708 * red + 0.5363325363 * green + 0.0514459929 * blue) ** (1 / 3)
    medium = (0.2119034982 * red + 0.6806995451 * green + 0.1073969566 * blue) ** (1 / 3)
    short = (0.0883024619 * red + 0.2817188376 * green + 0.6299787005 * blue) ** (1 / 3)
    return (
        0.2104542553 * long + 0.7936177850 * medium - 0.0040720468 * short,
        1.9779984951 * long - 2.4285922050 * medium + 0.4505937099 * short,
        0.0259040371 * long + 0.7827717662 * medium - 0.8086757660 * short,
    )


@pytest.mark.parametrize("ground", [0, 1], ids=["light", "dark"])
def test_texts_in_any_color_are_readable(ground):
    paper = COLORS["paper"][ground]
    assert all(contrast(COLORS[name][ground], paper) >= 4.5 for name in ("ink", "soft", *SERIES))
    shades = [f"{kind}{step}" for kind in "qd" for step in range(STEPS + 1)]
    assert all(contrast(both(f"on-{shade}")[ground], both(shade)[ground]) >= 4.5 for shade in shades)


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("ground", [0, 1], ids=["light", "dark"])
def test_color_blind_readers_can_distinguish_curves(ground, seen):
    for one, other in combinations(SERIES, 2):
        far = math.dist(*(oklab(COLORS[name][ground], SEEN[seen]) for name in (one, other)))
        assert far > 0.06, (one, other)


@pytest.mark.parametrize("ground", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("shades", [[f"q{step}" for step in range(STEPS + 1)],
                                    [f"d{step}" for step in range(STEPS // 2, STEPS + 1)],
                                    [f"d{step}" for step in range(STEPS // 2, -1, -1)]],
                         ids=["sequential", "positive", "negative"])  # fmt: skip
def test_a_scale_leaves_the_background_in_even_steps(ground, shades):
    lightness = [oklab(both(shade)[ground])[0] for shade in shades]
    steps = [(after - before) * (1 if ground else -1) for before, after in pairwise(lightness)]
    mean = sum(steps) / len(steps)
    assert all(0.7 * mean < step < 1.3 * mean for step in steps)
    assert abs(lightness[-1] - lightness[0]) > 0.45
