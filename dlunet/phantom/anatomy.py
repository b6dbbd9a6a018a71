"""The template anatomy: the course of every tubular organ, one row per point.

A row is (x, y, z, radius) in mm: x to the patient's left, y to posterior, z to superior, from an origin in front of
the first lumbar vertebra. Organs that are not tubular (liver, spleen, kidneys) are composed where they are painted.
"""

from __future__ import annotations

import numpy as np


def _course(*rows: tuple[float, float, float, float]) -> np.ndarray:
    course = np.array(rows, float)
    course.flags.writeable = False
    return course


STOMACH = _course(
    (48, 14, 84, 19),
    (64, 12, 66, 29),
    (72, -8, 48, 29),
    (71, -32, 24, 26),
    (57, -50, 3, 23),
    (33, -57, -8, 20),
    (8, -53, -8, 15),
    (-14, -43, -4, 9.5),
)

DUODENUM = _course(
    (-18, -42, -4, 9),
    (-32, -36, 2, 13),
    (-46, -24, -4, 12),
    (-53, -15, -22, 11.5),
    (-53, -12, -44, 11.5),
    (-44, -14, -61, 11.5),
    (-22, -24, -67, 10.5),
    (2, -27, -64, 10),
    (22, -25, -52, 10.5),
    (31, -29, -37, 10.5),
)

#: From the head to the tail.
PANCREAS = _course(
    (-35, -28, -36, 12),
    (-34, -31, -20, 16.5),
    (-22, -34, -8, 14.5),
    (-3, -35, 1, 10.8),
    (18, -34, 11, 11),
    (38, -22, 18, 11),
    (56, -4, 24, 10.8),
    (76, 12, 31, 9.4),
)

#: From the fundus to the neck.
GALLBLADDER = _course(
    (-64, -64, -30, 13),
    (-61, -59, -17, 15),
    (-54, -48, -3, 12.5),
    (-46, -36, 6, 7),
    (-41, -28, 12, 4),
)

ESOPHAGUS = _course(
    (5, 8, 215, 8),
    (6, 6, 150, 8),
    (9, -1, 125, 8),
    (15, -8, 104, 8.2),
    (24, -10, 90, 8),
    (37, -4, 81, 8),
    (46, 4, 78, 9),
)

AORTA = _course(
    (5, -7, -106, 8.0),
    (8, -8, -70, 8.6),
    (10, -8, -30, 9.0),
    (11, -7, 5, 9.6),
    (12, -3, 45, 10.2),
    (15, 6, 90, 11),
    (19, 16, 130, 11.4),
    (22, 24, 165, 11.6),
    (23, 28, 220, 11.8),
)

VENA_CAVA = _course(
    (-19, -6, -112, 9),
    (-20, -9, -80, 9.3),
    (-20, -10, -40, 9.6),
    (-20, -11, 0, 10.4),
    (-22, -12, 35, 11),
    (-25, -11, 65, 11.5),
    (-25, -13, 88, 12),
    (-20, -18, 112, 12.5),
)

#: Each gland as three sheets: the body, then the limbs from its posterior end. The radius is not used.
ADRENALS = {
    "Left adrenal gland": _course((38, -4, 38, 0), (42, 7, 34, 0), (37, 22, 29, 0), (51, 19, 30, 0)),
    "Right adrenal gland": _course((-31, 3, 36, 0), (-34, 13, 33, 0), (-30, 28, 29, 0), (-46, 25, 28, 0)),
}

COLON = (
    _course((-98, 12, -150, 21), (-101, 14, -115, 23), (-103, 12, -80, 22), (-98, 2, -56, 20), (-88, -24, -50, 18)),
    _course(
        (-88, -24, -50, 18),
        (-70, -56, -58, 18),
        (-32, -72, -72, 17),
        (12, -74, -70, 17),
        (52, -70, -46, 16),
        (86, -44, -16, 16),
        (104, -8, 2, 15),
    ),
    _course((104, -8, 2, 15), (112, 24, -12, 13), (112, 32, -50, 12), (111, 26, -90, 12), (104, 10, -150, 12)),
)

#: Regions through which the small bowel winds: lower corner, upper corner, and number of steps.
SMALL_BOWEL = (
    ((12, -64, -60), (92, 0, 0), 15),
    ((-84, -72, -145), (16, -8, -66), 24),
    ((0, -72, -145), (96, 4, -58), 24),
)

SUPERIOR_MESENTERIC_ARTERY = _course(
    (11, -12, 8, 3.6), (10, -21, 2, 3.6), (8, -25, -25, 3.4), (4, -27, -60, 3), (0, -30, -100, 2.2)
)

CELIAC_TRUNK = _course((11, -10, 20, 3.4), (10, -20, 21, 3.2), (-8, -24, 24, 2.6))

SUPERIOR_MESENTERIC_VEIN = _course((-6, -30, -110, 3.5), (-5, -31, -65, 5), (-6, -29, -30, 5.8), (-8, -24, -4, 6))

PORTAL_VEIN = _course((-8, -24, -4, 6.2), (-18, -20, 12, 6.6), (-38, -16, 28, 6.4))

SPLENIC_VEIN = _course((-8, -24, -2, 4.8), (16, -24, 10, 4.5), (38, -12, 18, 4.3), (58, 6, 24, 4), (80, 22, 32, 3.6))

#: Confluence of the hepatic veins with the vena cava, and their peripheral ends.
HEPATIC_VEINS_MOUTH = (-26, -10, 86)
HEPATIC_VEINS_ENDS = ((-118, 24, 50), (-84, -52, 48), (18, -58, 66), (-96, 46, 20))

#: The portal vein at the porta hepatis, its right fork and the ends of that, and the course of its left branch.
PORTA = (-38, -16, 28)
PORTAL_FORK = (-66, -6, 34)
PORTAL_RIGHT_ENDS = ((-120, 12, 16), (-106, -44, 14), (-104, 38, 58), (-86, -8, 74))
PORTAL_LEFT = ((-26, -46, 56), (22, -62, 70))
