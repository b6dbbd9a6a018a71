"""Paint the 13 organs, the bowel and the vessels into the torso, from back to front.

Every organ is a template made of tubes and blobs. Three things vary it per case: the smooth deformation of the entire
patient (already in the canvas's coordinates), a shift and scale of the organ, and a wobble of its surface.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlunet.labels import FLARE22
from dlunet.phantom import anatomy
from dlunet.phantom.canvas import Canvas, Region
from dlunet.phantom.solids import blob, clip, cut, join, tube, turned
from dlunet.phantom.torso import Torso
from dlunet.phantom.variation import Variation

_ID = {label.name: label.id for label in FLARE22}

#: Label of vessels outside the organs and of bowel: background.
_BACKGROUND = 0

#: Root from which the vessels of the small bowel fan out, (x, y, z) in mm.
_MESENTERIC_ROOT = np.array([2.0, -24.0, -45.0])


class AbdomenPainter:
    """Paints one case's abdomen; its methods run in the order in which organs cover each other.

    Args:
        canvas: The canvas with the torso.
        torso: The space to fit into.
        rng: Random generator for the case's shapes.
        variation: The case's variation.
        tissues: Mean HU by tissue.
        surface: Smooth fields (z, y, x) of unit variance that displace surfaces, coarse ones first.
        grain: Fine smooth field (z, y, x) of unit variance for texture.
    """

    def __init__(
        self,
        canvas: Canvas,
        torso: Torso,
        rng: np.random.Generator,
        variation: Variation,
        tissues: dict[str, float],
        surface: Sequence[np.ndarray],
        grain: np.ndarray,
    ) -> None:
        self.canvas, self.torso, self.rng = canvas, torso, rng
        self.tissues, self.surface, self.grain = tissues, surface, grain
        self.findings = variation.findings
        self.spread = variation.organ_spread
        # Reference points for neighbours painted later.
        self.pylorus = anatomy.STOMACH[-1, :3]
        self.kidney_shift = {-1: np.zeros(3), 1: np.zeros(3)}

    def paint(self) -> None:
        """Paint everything below the diaphragm."""
        self._paint_small_bowel()
        self._paint_colon()
        self._paint_liver()
        self._paint_spleen()
        self._paint_portal_system()
        self._paint_stomach()
        self._paint_pancreas()
        for side in (-1, 1):
            self._paint_kidney(side)
        self._paint_duodenum()
        if "no gallbladder" not in self.findings:
            self._paint_gallbladder()
        self._paint_esophagus()
        self._paint_great_vessels()
        for side in (-1, 1):
            self._paint_adrenal(side)

    # Case-specific version of a template ------------------------------------------------------------------------

    def _own(self, course: np.ndarray, freedom: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """A template course (n, 4), shifted, bent and scaled for this case: points (n, 3) and radii (n,)."""
        template = course[:, :3]
        center = template.mean(axis=0)
        size = 1 + np.clip(self.rng.normal(0, self.spread / 100 * freedom), -0.12, 0.12)
        shift = np.clip(self.rng.normal(0, 1, 3), -1.8, 1.8) * self.spread * freedom
        bend = self.rng.normal(0, 0.35 * self.spread * freedom, template.shape)
        return center + (template - center) * size + shift + bend, course[:, 3] * size

    def _wobble(self, where: Region, coarse: float, fine: float = 0.0) -> np.ndarray:
        """A smooth displacement of a surface in mm with these standard deviations."""
        weights = self.rng.standard_normal(len(self.surface))
        half = len(self.surface) // 2
        weights[:half] *= coarse / max(float(np.linalg.norm(weights[:half])), 1e-6)
        weights[half:] *= fine / max(float(np.linalg.norm(weights[half:])), 1e-6)
        moved = np.zeros(self.surface[0][where].shape, np.float32)
        for weight, field in zip(weights, self.surface, strict=True):
            if weight:
                moved += np.float32(weight) * field[where]
        return moved

    def _texture(self, where: Region, tissue: str, strength: float) -> np.ndarray:
        return np.float32(self.tissues[tissue]) + np.float32(strength) * self.grain[where]

    def _vessel(self, course: np.ndarray, tissue: str) -> None:
        """A vessel outside the labelled organs, along a course (n, 4)."""
        where = self.canvas.around(course[:, :3], course[:, 3].max() + 4)
        vessel = tube(self.canvas, where, course[:, :3], course[:, 3])
        self.canvas.paint(where, vessel, self.tissues[tissue], label=_BACKGROUND)

    # Bowel ------------------------------------------------------------------------------------------------------

    def _paint_small_bowel(self) -> None:
        """Loops of jejunum and ileum in the central abdomen, and the vessels that supply them."""
        for _ in range(9):
            end = np.array([self.rng.uniform(-70, 85), self.rng.uniform(-65, -15), self.rng.uniform(-125, -40)])
            middle = (end + _MESENTERIC_ROOT) / 2 + self.rng.normal(0, 6, 3)
            self._vessel(_with_radii([_MESENTERIC_ROOT, middle, end], (2.6, 2.2, 1.6)), "portal vein")
        for low, high, steps in anatomy.SMALL_BOWEL:
            self._paint_loops(np.array(low, float), np.array(high, float), steps)

    def _paint_loops(self, low: np.ndarray, high: np.ndarray, steps: int) -> None:
        at = self.rng.uniform(low, high)
        heading = self.rng.normal(0, 1, 3)
        points = [at]
        for _ in range(steps):
            heading = heading / np.linalg.norm(heading) + self.rng.normal(0, 0.55, 3)
            step = at + heading / np.linalg.norm(heading) * 25
            outside = (step < low) | (step > high)
            heading[outside] *= -1
            at = np.clip(at + heading / np.linalg.norm(heading) * 25, low, high)
            points.append(at)
        path = np.array(points)
        radii = self.rng.uniform(8.5, 13.5, len(path))
        for first in range(0, len(path) - 2, 2):
            piece, piece_radii = path[first : first + 3], radii[first : first + 3]
            filling = self.rng.choice(["fluid", "mixed", "gas", "empty"], p=(0.35, 0.35, 0.08, 0.22))
            self._paint_bowel(piece, piece_radii, str(filling))

    def _paint_bowel(self, points: np.ndarray, radii: np.ndarray, filling: str) -> None:
        canvas = self.canvas
        where = canvas.around(points, float(max(radii)) + 5)
        loop = tube(canvas, where, points, radii) + self._wobble(where, 1.0, 0.8)
        loop = np.maximum(loop, self.torso.cavity[where] + 2)
        content = {"fluid": 14.0, "mixed": 32.0, "gas": self.tissues["gas"], "empty": 45.0, "contrast": 230.0}
        if "oral contrast" in self.findings and filling in ("fluid", "mixed"):
            filling = "contrast"
        canvas.clear_around(where, loop, 2.0, self.tissues["fat"])
        canvas.paint(where, loop, self.tissues["bowel wall"], label=_BACKGROUND, movable=True)
        inside = loop + (3.0 if filling != "empty" else 6.0)
        canvas.paint(where, inside, content[filling] + 8 * self.grain[where])

    def _paint_colon(self) -> None:
        """Ascending, transverse and descending colon with haustra, stool and gas that rises to the front."""
        for course in anatomy.COLON:
            self._paint_colon_part(*self._own(course, 0.8))

    def _paint_colon_part(self, points: np.ndarray, radii: np.ndarray) -> None:
        canvas = self.canvas
        where = canvas.around(points, float(radii.max()) + 8)
        x, y, z = canvas.x[where], canvas.y[where], canvas.z[where]
        haustra = 1.8 * np.sin((x + 0.6 * y + z) / 5.5 + self.rng.uniform(0, 6)) + self._wobble(where, 1.5, 1.2)
        colon = clip(tube(canvas, where, points, radii) + haustra, self.torso.cavity[where] + 3, 4)
        canvas.clear_around(where, colon, 3.0, self.tissues["fat"])
        canvas.paint(where, colon, self.tissues["bowel wall"], label=_BACKGROUND, movable=True)
        stool = self.tissues["faeces"] + 25 * self.grain[where]
        bubbles = self._wobble(where, 0.0, 1.0) * np.sin(x / 2.7) * np.sin(z / 3.1 + y / 2.9)
        stool = stool - 420 * np.clip((bubbles - self.rng.uniform(0.2, 0.8)) * 2, 0, 1)
        canvas.paint(where, colon + 3.2, stool)
        # Gas rises: in a supine patient, it is anterior to a level.
        level = points[:, 1].mean() - self.rng.uniform(-4, 14)
        gas_level = y - level - 0.3 * (z - points[:, 2].mean()) * float(self.rng.normal(0, 0.3))
        canvas.paint(where, np.maximum(colon + 3.6, gas_level), self.tissues["gas"])

    # Upper abdomen ----------------------------------------------------------------------------------------------

    def _paint_liver(self) -> None:
        canvas = self.canvas
        shift = np.clip(self.rng.normal(0, 1, 3), -1.5, 1.5) * self.spread * (0.6, 0.6, 0.9)
        size = 1.01 + np.clip(self.rng.normal(0, 1.1 * self.spread / 100), -0.08, 0.08)
        left_size = 1 + np.clip(self.rng.normal(0, 4 * self.spread / 100), -0.3, 0.3)
        where = canvas.region(np.array([-145, -105, -90]), np.array([95, 88, 125]))
        x, y, z = canvas.x[where], canvas.y[where], canvas.z[where]
        right = blob(canvas, where, shift + np.array([-76, 2, 36]), np.array([74, 87, 96]) * size, turned(0, -10, 8))
        left = blob(
            canvas,
            where,
            shift + np.array([-6, -44, 62]),
            np.array([72 * left_size, 40, 40]) * size,
            turned(8, 10, -12),
        )
        caudate = blob(canvas, where, shift + np.array([-14, -14, 54]), np.array([22, 22, 32]) * size)
        liver = join(join(right, left, 18), caudate, 8)
        # The visceral surface faces down, back and to the left; kidney, colon and stomach are below it.
        slope = np.array([0.60, 0.30, -0.74])
        through = np.array([-66, 0, -22 - self.rng.normal(0, 5)]) + shift
        visceral = slope[0] * (x - through[0]) + slope[1] * (y - through[1]) + slope[2] * (z - through[2])
        bulge = 9 * np.sin((x + 70) / 40) * np.cos((y + 20) / 38)
        liver = clip(liver, visceral + bulge, 14)
        medial = blob(canvas, where, shift + np.array([34, 26, 40]), (52, 42, 84))
        liver = cut(liver, medial, 12)
        liver = liver + self._wobble(where, 2.6, 0.6)
        liver = clip(liver, np.maximum(self.torso.cavity[where] + 2.0, self.torso.diaphragm[where] + 1.2), 3)
        # The fissure of the round ligament separates the left lobe from the right.
        bent = x - shift[0] + 26 - 0.12 * (y + 50) + self._wobble(where, 3.0)
        fissure = np.maximum(np.abs(bent) - 2.4, np.maximum(y + 40, z - 22 - shift[2]))
        parenchyma = self._texture(where, "liver", 4)
        if "fatty liver" in self.findings:
            parenchyma = parenchyma - np.float32(self.rng.uniform(20, 55)) + 4 * self._wobble(where, 1.0)
        canvas.clear_around(where, liver, 2.0, self.tissues["fat"])
        canvas.paint(where, liver, parenchyma, label=_ID["Liver"], movable=True)
        in_liver = canvas.labels[where] == _ID["Liver"]
        canvas.paint(where, fissure, self.tissues["fat"], label=_BACKGROUND, within=in_liver)
        self._paint_liver_vessels(shift)
        count = int(self.rng.integers(1, 5))
        if "liver cysts" in self.findings:
            self._paint_lesions("Liver", count, (4, 20), self.tissues["fluid"])
        if "liver tumours" in self.findings:
            dark = float(np.mean(parenchyma)) - self.rng.uniform(18, 50) if parenchyma.size else 0.0
            self._paint_lesions("Liver", count + 1, (5, 24), dark, rim=12)

    def _paint_liver_vessels(self, shift: np.ndarray) -> None:
        """Three hepatic veins that meet the inferior vena cava below the diaphragm, and the portal branches."""
        for end in anatomy.HEPATIC_VEINS_ENDS:
            self._branch_in_liver(np.array(anatomy.HEPATIC_VEINS_MOUTH), end + shift, 5.2)
        porta, fork = np.array(anatomy.PORTA), anatomy.PORTAL_FORK + shift
        self._branch_in_liver(porta, fork, 6.5)
        for end in anatomy.PORTAL_RIGHT_ENDS:
            self._branch_in_liver(fork, end + shift, 4.6)
        turn, tip = (point + shift for point in anatomy.PORTAL_LEFT)
        self._branch_in_liver(porta, turn, 5.0)
        self._branch_in_liver(turn, tip, 3.6)

    def _branch_in_liver(self, start: np.ndarray, end: np.ndarray, radius: float) -> None:
        canvas = self.canvas
        middles = [start + (end - start) * share + self.rng.normal(0, 4, 3) for share in (0.35, 0.7)]
        points = np.stack([start, *middles, end])
        where = canvas.around(points, radius + 4)
        vessel = tube(canvas, where, points, (radius, radius * 0.8, radius * 0.6, radius * 0.35))
        inside = canvas.labels[where] == _ID["Liver"]
        canvas.paint(where, vessel, self.tissues["liver vessel"], within=inside)
        twig = middles[1] + (end - start) * 0.25 + self.rng.normal(0, 12, 3)
        near = canvas.around(np.stack([middles[1], twig]), radius + 4)
        small = tube(canvas, near, np.stack([middles[1], twig]), (radius * 0.55, radius * 0.3))
        canvas.paint(near, small, self.tissues["liver vessel"], within=canvas.labels[near] == _ID["Liver"])

    def _paint_spleen(self) -> None:
        canvas = self.canvas
        size = (1.35 if "large spleen" in self.findings else 1.0) * (1 + np.clip(self.rng.normal(0, 0.07), -0.15, 0.15))
        center = np.array([100.0, 34, 40]) + np.clip(self.rng.normal(0, 1, 3), -1.5, 1.5) * self.spread
        where = canvas.around(center, 70 * size + 14)
        spleen = blob(canvas, where, center, np.array([42, 60, 64]) * size, turned(-24, 8, 24))
        hollow = blob(canvas, where, center + np.array([-54, -19, 2]), np.array([34, 46, 66]), turned(-20, 0, 24))
        notch = blob(canvas, where, center + np.array([-6, -54 * size, -16]), (9, 13, 7))
        spleen = cut(cut(spleen, hollow, 8), notch, 5) + self._wobble(where, 2.2, 0.5)
        spleen = clip(spleen, np.maximum(self.torso.cavity[where] + 2.0, self.torso.diaphragm[where] + 2.5), 3)
        canvas.clear_around(where, spleen, 2.5, self.tissues["fat"])
        # In the arterial phase the pulp enhances in stripes.
        x, y, z = canvas.x[where], canvas.y[where], canvas.z[where]
        arterial = max(0.0, self.tissues["aorta"] - 200) / 5
        stripes = np.sin(x / 4.5 + 1.5 * np.sin(z / 9)) * np.sin(y / 5.5)
        pulp = self._texture(where, "spleen", 4) + arterial * stripes
        canvas.paint(where, spleen, pulp, label=_ID["Spleen"], movable=True)
        if "spleen lesions" in self.findings:
            self._paint_lesions("Spleen", int(self.rng.integers(1, 4)), (4, 14), self.tissues["spleen"] - 45)

    def _paint_stomach(self) -> None:
        canvas = self.canvas
        filling = self.rng.uniform(0.86, 1.14)
        points, radii = self._own(anatomy.STOMACH, 0.9)
        self.pylorus = points[-1]
        radii = radii * filling
        where = canvas.around(points, float(radii.max()) + 14)
        x, y, z = canvas.x[where], canvas.y[where], canvas.z[where]
        stomach = tube(canvas, where, points, radii, (1.0, 0.92, 1.0)) + self._wobble(where, 2.6, 0.8)
        stomach = clip(stomach, self.torso.abdomen(where) + 4.0, 5)
        canvas.clear_around(where, stomach, 2.5, self.tissues["fat"])
        canvas.paint(where, stomach, self._texture(where, "stomach wall", 6), label=_ID["Stomach"], movable=True)
        folds = 1.3 * np.sin(x / 3.3 + y / 4.7) * np.sin(z / 4.1)
        inside = stomach + self.rng.uniform(3.8, 5.5) + folds
        meal = self.rng.choice(["water", "food", "contrast"], p=self._meal_odds())
        content = {"water": 10.0, "food": 48.0, "contrast": 210.0}[str(meal)]
        lumps = 34.0 if meal == "food" else 4.0
        canvas.paint(where, inside, content + lumps * self.grain[where])
        if meal == "food":
            crumbs = self._wobble(where, 0.0, 1.0) * np.sin(x / 2.9) * np.sin(y / 3.2 + z / 3)
            canvas.paint(where, inside + 3, -70.0, within=np.clip(crumbs - 0.3, 0, 1))
        level = y - points[3:6, 1].mean() + self.rng.uniform(-4, 22)
        canvas.paint(where, np.maximum(inside + 0.5, level), self.tissues["gas"])

    def _meal_odds(self) -> tuple[float, float, float]:
        return (0.2, 0.2, 0.6) if "oral contrast" in self.findings else (0.5, 0.5, 0.0)

    def _paint_pancreas(self) -> None:
        canvas = self.canvas
        points, radii = self._own(anatomy.PANCREAS, 0.7)
        radii = radii * self.rng.uniform(0.88, 1.1)
        where = canvas.around(points, float(radii.max()) + 8)
        gland = tube(canvas, where, points, radii, (1.0, 0.86, 1.12))
        uncinate = points[1] + np.array([12, 8, -12])
        gland = join(gland, blob(canvas, where, uncinate, (15, 7.5, 10)), 6)
        # Lobulated, with clefts of fat; more so in older patients.
        age = self.rng.uniform(0.8, 2.0)
        gland = gland + self._wobble(where, 1.3, age)
        canvas.clear_around(where, gland, 1.5, self.tissues["fat"])
        marbling = np.float32(6 + 8 * age) * np.minimum(self._wobble(where, 0.0, 1.0), 0.4)
        canvas.paint(where, gland, self._texture(where, "pancreas", 5) + marbling, label=_ID["Pancreas"], movable=True)
        if "pancreas tumour" in self.findings:
            self._paint_pancreas_tumour(points)
        if "pancreas cyst" in self.findings:
            self._paint_lesions("Pancreas", int(self.rng.integers(1, 3)), (4, 9), self.tissues["fluid"] + 6)

    def _paint_pancreas_tumour(self, points: np.ndarray) -> None:
        """A poorly enhancing mass that widens the gland, and the dilated duct upstream of it."""
        canvas = self.canvas
        seat = int(self.rng.choice([1, 1, 1, 4, 6]))
        radius = float(self.rng.uniform(8, 15))
        near = canvas.around(points[seat], radius + 8)
        mass = blob(canvas, near, points[seat], radius * self.rng.uniform(0.8, 1.2, 3)) + self._wobble(near, 1.0, 1.2)
        dark = self.tissues["pancreas"] - self.rng.uniform(18, 38)
        if seat < 4:
            duct = points[seat + 1 :]
            where = canvas.around(duct, 8)
            canal = tube(canvas, where, duct, np.full(len(duct), self.rng.uniform(1.6, 3.0)))
            canvas.paint(where, canal, self.tissues["fluid"] + 5, within=canvas.labels[where] == _ID["Pancreas"])
        canvas.paint(near, mass, dark + 5 * self.grain[near], label=_ID["Pancreas"], movable=True)

    # Retroperitoneum --------------------------------------------------------------------------------------------

    def _paint_kidney(self, side: int) -> None:
        canvas = self.canvas
        name = "Left kidney" if side > 0 else "Right kidney"
        size = 1 + np.clip(self.rng.normal(0, 1.1 * self.spread / 100), -0.1, 0.1)
        home = np.array([70.0, 30, -10]) if side > 0 else np.array([-68.0, 30, -24])
        self.kidney_shift[side] = np.clip(self.rng.normal(0, 1, 3), -1.5, 1.5) * self.spread * (0.6, 0.6, 1.2)
        center = home + self.kidney_shift[side]
        # The upper pole leans towards the spine and back; the hilum faces inwards and forward.
        lean = turned(self.rng.normal(10, 3), side * self.rng.normal(14, 3), side * self.rng.normal(32, 5))
        where = canvas.around(center, 76 * size)
        inward = np.array([-side, 0, 0])
        bean = blob(canvas, where, center, np.array([28.4, 25.8, 55.5]) * size, lean)
        hilum = blob(canvas, where, center + lean @ (inward * 29 * size), np.array([13, 15, 19]) * size, lean)
        kidney = cut(bean, hilum, 10) + self._wobble(where, 1.3, 0.6)
        sinus = blob(canvas, where, center + lean @ (inward * 15 * size), np.array([15, 8.5, 25]) * size, lean)
        sinus = sinus + self._wobble(where, 0.8, 1.8)
        canvas.clear_around(where, kidney, 7.0, self._texture(where, "fat", 6))
        ident = _ID[name]
        canvas.paint(where, kidney, self._texture(where, "renal cortex", 4), label=ident)
        x, y, z = canvas.x[where], canvas.y[where], canvas.z[where]
        columns = np.sin(z / 5.2 + self.rng.uniform(0, 6)) + 0.6 * np.sin((x + y) / 5.5)
        pyramids = np.maximum(kidney + 6.0, -2.2 * columns - 2.5)
        canvas.paint(where, pyramids, self._texture(where, "renal medulla", 4), within=canvas.labels[where] == ident)
        canvas.paint(where, sinus, self.tissues["fat"] + 12, label=_BACKGROUND)
        pelvis = center + lean @ (inward * 19 * size)
        self._paint_renal_pelvis(side, pelvis, center, lean, size)
        if "kidney cysts" in self.findings:
            for _ in range(int(self.rng.integers(1, 4))):
                self._paint_kidney_mass(name, center, lean, size, (6, 17), self.tissues["fluid"])
        if "kidney tumour" in self.findings and self.rng.random() < 0.5:
            self._paint_kidney_mass(name, center, lean, size, (10, 24), self.tissues["renal cortex"] - 45)

    def _paint_renal_pelvis(
        self, side: int, pelvis: np.ndarray, center: np.ndarray, lean: np.ndarray, size: float
    ) -> None:
        """Pelvis, artery and vein; the left vein crosses in front of the aorta."""
        canvas = self.canvas
        where = canvas.around(pelvis, 26)
        cavity = blob(canvas, where, pelvis, np.array([9, 4.5, 9]) * size, lean)
        canvas.paint(where, cavity, self.tissues["fluid"] + 8, label=_BACKGROUND)
        hilum = center + lean @ np.array([-side * 26.0 * size, -3, 4])
        if side > 0:
            vein = [hilum, (36, 0, hilum[2] + 4), (16, -20, -6), (-14, -12, -6)]
            artery = [hilum + np.array([0, 5, 6]), (32, 6, hilum[2] + 8), (12, -6, 2)]
        else:
            vein = [hilum, (-40, 2, hilum[2] + 6), (-22, -8, -8)]
            artery = [hilum + np.array([0, 5, 5]), (-32, 6, hilum[2] + 12), (-8, 2, 2), (10, -6, 4)]
        self._vessel(_with_radii(vein, (4.5,) * len(vein)), "renal vein")
        self._vessel(_with_radii(artery, (3.0,) * len(artery)), "aorta")

    def _paint_kidney_mass(
        self, name: str, center: np.ndarray, lean: np.ndarray, size: float, radii: tuple[float, float], hu: float
    ) -> None:
        """A mass that may bulge out of the kidney; it is labelled as kidney, as in FLARE22."""
        canvas = self.canvas
        direction = self.rng.normal(0, 1, 3)
        direction[0] = abs(direction[0]) * np.sign(center[0])
        on_surface = center + lean @ (direction / np.linalg.norm(direction) * (25, 22, 46) * size)
        radius = float(self.rng.uniform(*radii))
        where = canvas.around(on_surface, radius + 10)
        mass = blob(canvas, where, on_surface, radius * self.rng.uniform(0.85, 1.15, 3)) + self._wobble(where, 0.8)
        mass = np.maximum(mass, self.torso.cavity[where] + 2)
        free = (canvas.labels[where] == 0) | (canvas.labels[where] == _ID[name])
        canvas.paint(where, mass, hu + 6 * self.grain[where], label=_ID[name], within=free & (canvas.hu[where] > -300))

    def _paint_adrenal(self, side: int) -> None:
        """Thin vertical sheets: a body with two limbs that open to the back, like an inverted Y."""
        canvas = self.canvas
        name = "Left adrenal gland" if side > 0 else "Right adrenal gland"
        points, _ = self._own(anatomy.ADRENALS[name], 0.45)
        points += 0.6 * self.kidney_shift[side]
        thickness = float(np.clip(self.rng.normal(1, 0.08), 0.85, 1.15))
        where = canvas.around(points, np.array([10.0, 10, 26]))
        gland: np.ndarray | None = None
        for start, end in ((0, 1), (1, 2), (1, 3)):
            radii = (3.0 * thickness, 2.5 * thickness)
            limb = tube(canvas, where, points[[start, end]], radii, (1, 1, 4.2))
            gland = limb if gland is None else join(gland, limb, 1.5)
        assert gland is not None
        gland = gland + self._wobble(where, 0.3, 0.3)
        taken = np.isin(canvas.labels[where], (_ID["Aorta"], _ID["Inferior vena cava"]))
        canvas.clear_around(where, gland, 2.5, self.tissues["fat"])
        canvas.paint(where, gland, self._texture(where, "adrenal", 4), label=_ID[name], within=~taken, movable=True)

    def _paint_duodenum(self) -> None:
        canvas = self.canvas
        points, radii = self._own(anatomy.DUODENUM, 0.6)
        # It starts where this case's stomach ends.
        points[1] += 0.5 * (self.pylorus - points[0])
        points[0] = self.pylorus
        radii = radii * self.rng.uniform(0.9, 1.08)
        where = canvas.around(points, float(radii.max()) + 8)
        gut = tube(canvas, where, points, radii) + self._wobble(where, 1.2, 1.0)
        canvas.clear_around(where, gut, 1.0, self.tissues["fat"])
        canvas.paint(where, gut, self._texture(where, "bowel wall", 6), label=_ID["Duodenum"], movable=True)
        content = self.rng.choice([18.0, 40.0, 190.0], p=self._meal_odds())
        collapsed = 4.0 + 2.0 * self._wobble(where, 1.0)
        canvas.paint(where, gut + np.maximum(collapsed, 3.0), content + 10 * self.grain[where])
        if self.rng.random() < 0.5:
            level = canvas.y[where] - points[:4, 1].mean() + 6
            first = np.maximum(level, -8 - canvas.z[where])
            canvas.paint(where, np.maximum(gut + 5, first), self.tissues["gas"])

    def _paint_gallbladder(self) -> None:
        canvas = self.canvas
        points, radii = self._own(anatomy.GALLBLADDER, 0.6)
        radii = radii * self.rng.uniform(0.82, 1.15)
        where = canvas.around(points, float(radii.max()) + 8)
        sac = tube(canvas, where, points, radii) + self._wobble(where, 1.0, 0.3)
        sac = clip(sac, self.torso.cavity[where] + 3, 4)
        ident = _ID["Gallbladder"]
        canvas.paint(where, sac, self.tissues["bowel wall"] * 0.8, label=ident, movable=True)
        canvas.paint(where, sac + 2.0, self.tissues["bile"] + 2 * self.grain[where])
        if "gallstones" in self.findings:
            for _ in range(int(self.rng.integers(1, 4))):
                seat = points[int(self.rng.integers(0, 2))] + np.array(
                    [self.rng.normal(0, 4), 6, self.rng.normal(0, 4)]
                )
                near = canvas.around(seat, 10)
                stone = blob(canvas, near, seat, self.rng.uniform(2.5, 5.5, 3))
                canvas.paint(near, stone, self.rng.uniform(110, 500), within=canvas.labels[near] == ident)

    # Tubes through the diaphragm --------------------------------------------------------------------------------

    def _paint_esophagus(self) -> None:
        canvas = self.canvas
        points, radii = self._own(anatomy.ESOPHAGUS, 0.35)
        radii = radii * self.rng.uniform(0.95, 1.15)
        where = canvas.around(points, 20)
        tubes = tube(canvas, where, points, radii, (1.1, 0.88, 1)) + self._wobble(where, 0.7, 0.4)
        free = canvas.labels[where] != _ID["Stomach"]
        no_lung = free & (canvas.hu[where] > -600)
        canvas.paint(where, tubes - 2.5, self.tissues["fat"], label=_BACKGROUND, within=no_lung)
        canvas.paint(where, tubes, self._texture(where, "esophagus", 6), label=_ID["Esophagus"], within=free)
        if self.rng.random() < 0.5:
            canvas.paint(where, tubes + 5.5, self.rng.choice([-350.0, 10.0]), within=free)

    def _paint_great_vessels(self) -> None:
        """Vena cava, aorta and their branches."""
        self._paint_vena_cava()
        self._paint_aorta()

    def _paint_vena_cava(self) -> None:
        canvas = self.canvas
        points, radii = self._own(anatomy.VENA_CAVA, 0.3)
        radii = radii * self.rng.uniform(0.88, 1.08)
        flat = self.rng.uniform(0.66, 0.92)
        where = canvas.around(points, 26)
        vein = tube(canvas, where, points, radii, (1.14, flat, 1)) + self._wobble(where, 0.7)
        # In the early phases, blood below the renal veins is not enhanced yet.
        mixing = np.clip((canvas.z[where] + 30) / 50, 0, 1)
        hu = self.tissues["ivc"] + (self.tissues["renal vein"] - self.tissues["ivc"]) * 0.6 * mixing
        for leg in (-1, 1):
            iliac = [(-19, -6, -111), (leg * 14 - 12, 0, -128), (leg * 30 - 8, 8, -160)]
            self._vessel(_with_radii(iliac, (8, 6.5, 6)), "ivc")
        canvas.paint(where, vein - 1.2, self.tissues["fat"], within=canvas.labels[where] != _ID["Liver"])
        canvas.paint(where, vein, hu + 3 * self.grain[where], label=_ID["Inferior vena cava"])

    def _paint_aorta(self) -> None:
        canvas, tissues = self.canvas, self.tissues
        points, radii = self._own(anatomy.AORTA, 0.3)
        radii = radii * self.rng.uniform(0.92, 1.1)
        if "wide aorta" in self.findings:
            radii[1:3] *= self.rng.uniform(1.5, 2.1)
            points[1:3, 1] -= 5
        for leg in (-1, 1):
            iliac = [(5, -7, -104), (leg * 13 + 4, -3, -122), (leg * 28 + 3, 2, -160)]
            self._vessel(_with_radii(iliac, (6.6, 5.5, 5)), "aorta")
        self._vessel(anatomy.SUPERIOR_MESENTERIC_ARTERY, "aorta")
        self._vessel(anatomy.CELIAC_TRUNK, "aorta")
        where = canvas.around(points, 28)
        vessel = tube(canvas, where, points, radii) + self._wobble(where, 0.4)
        in_chest = canvas.hu[where] > -500
        canvas.paint(where, vessel - 1.6, tissues["fat"], label=_BACKGROUND, within=in_chest & (canvas.hu[where] < 300))
        canvas.paint(where, vessel, tissues["aorta"] + 3 * self.grain[where], label=_ID["Aorta"])
        if "calcified aorta" in self.findings:
            plaque = self._wobble(where, 0.0, 1.0)
            rim = np.abs(vessel + 1.2) - 1.1
            lower = plaque + np.clip((20 - canvas.z[where]) / 90, -0.6, 0.8) > self.rng.uniform(1.2, 1.8)
            canvas.paint(where, rim, tissues["calcium"], within=lower)

    def _paint_portal_system(self) -> None:
        """Superior mesenteric, splenic and portal vein."""
        self._vessel(anatomy.SUPERIOR_MESENTERIC_VEIN, "portal vein")
        self._vessel(anatomy.PORTAL_VEIN, "portal vein")
        self._vessel(anatomy.SPLENIC_VEIN, "portal vein")

    # Lesions ----------------------------------------------------------------------------------------------------

    def _paint_lesions(self, organ: str, count: int, radii: tuple[float, float], hu: float, rim: float = 0.0) -> None:
        """Round masses at random positions inside an organ; they keep its label."""
        canvas = self.canvas
        seats = np.flatnonzero(canvas.labels == _ID[organ])
        if seats.size == 0:
            return
        for seat in self.rng.random(count):
            index = np.unravel_index(seats[int(seat * seats.size)], canvas.labels.shape)
            center = np.array([canvas.x[index], canvas.y[index], canvas.z[index]])
            # Small ones are more frequent than large ones.
            radius = radii[0] + (radii[1] - radii[0]) * float(self.rng.random()) ** 2
            where = canvas.around(center, radius + 8)
            mass = blob(canvas, where, center, radius * self.rng.uniform(0.8, 1.25, 3)) + self._wobble(where, 0.6, 0.8)
            inside = canvas.labels[where] == _ID[organ]
            if rim:
                canvas.paint(where, mass - 1.5, hu + 2.4 * rim, within=inside)
            canvas.paint(where, mass, hu + 4 * self.grain[where], within=inside)


def _with_radii(points: Sequence[Sequence[float] | np.ndarray], radii: Sequence[float]) -> np.ndarray:
    """A course (n, 4) from points and radii."""
    return np.column_stack([np.array([np.asarray(point, float) for point in points]), radii])
