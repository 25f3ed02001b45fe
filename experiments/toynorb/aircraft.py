"""Airplanes."""

from experiments.toynorb.solids import Dice, Solid, ball, box, limb, mirrored, wheel, wing


def airplane(dice: Dice, variant: int) -> list[Solid]:
    """A jet fighter, an airliner or a propeller plane, with one pair of wings or two, on its wheels
    or its belly.
    """
    kind = ("jet", "airliner", "propeller", "biplane", "propeller")[variant % 5]
    length = dice.between(1.7, 2.1) * (0.85 if kind in ("propeller", "biplane") else 1.0)
    radius = dice.between(0.09, 0.15)
    belly = dice.between(0.16, 0.3)
    z = belly + radius
    front, back = length / 2, -length / 2
    parts = [
        limb(
            (0.1 * length, 0.0, z),
            (front - radius, 0.0, z),
            radius * 1.05,
            radius * dice.between(0.45, 0.95),
            blend=0.02,
        ),
        limb(
            (0.1 * length, 0.0, z),
            (back, 0.0, z + radius * dice.between(0.2, 0.8)),
            radius * 1.05,
            radius * 0.4,
            blend=0.08,
        ),
    ]

    span = dice.between(0.7, 1.05) if kind != "jet" else dice.between(0.5, 0.8)
    sweep = {"jet": dice.between(0.35, 0.75), "airliner": dice.between(0.25, 0.5)}.get(
        kind, dice.between(-0.03, 0.1)
    )
    root, tip = dice.between(0.35, 0.5), dice.between(0.12, 0.3)
    if kind == "jet":
        root, tip = dice.between(0.6, 0.95), dice.between(0.1, 0.3)
    elif kind == "biplane":
        root, tip = dice.between(0.3, 0.38), dice.between(0.28, 0.36)
    middle = dice.between(0.0, 0.22) if kind != "jet" else dice.between(-0.2, 0.05)
    level = dice.choice("low", "middle", "high")
    wing_z = z + {"low": -0.6, "middle": 0.0, "high": 0.8}[level] * radius
    rise = dice.between(-0.02, 0.14)
    parts += mirrored(
        wing((middle, 0.0, wing_z), (middle - sweep, span, wing_z + rise), root, tip, 0.07, 0.045)
    )
    if kind == "biplane":
        upper = z + radius + 0.22
        parts += mirrored(
            wing(
                (middle + 0.08, 0.0, upper),
                (middle + 0.08, span, upper + 0.03),
                root,
                tip,
                0.06,
                0.05,
            )
        )
        parts += mirrored(
            limb(
                (middle + 0.04, span * 0.7, wing_z),
                (middle + 0.08, span * 0.7, upper),
                0.025,
                0.025,
                0.01,
            )
        )

    tail = dice.choice("low", "low", "T", "twin")
    chord, fin = dice.between(0.18, 0.32), dice.between(0.25, 0.42)
    slope = 0.8 if kind in ("jet", "airliner") else 0.3
    x, tail_z = back + chord * 0.6, z + radius * 0.5
    tail_span = dice.between(0.28, 0.42)
    if tail == "twin":
        parts += mirrored(
            wing(
                (x, 0.15, tail_z),
                (x - slope * fin, 0.2, tail_z + fin),
                chord,
                chord * 0.6,
                0.06,
                0.04,
            )
        )
    else:
        parts.append(
            wing(
                (x, 0.0, tail_z),
                (x - slope * fin, 0.0, tail_z + fin),
                chord * 1.2,
                chord * 0.6,
                0.06,
                0.045,
            )
        )
    plane_z = tail_z + fin if tail == "T" else tail_z
    plane_x = x - slope * fin if tail == "T" else x
    parts += mirrored(
        wing(
            (plane_x, 0.0, plane_z),
            (plane_x - slope * 0.3, tail_span, plane_z),
            chord,
            chord * 0.55,
            0.05,
            0.04,
        )
    )

    engines = (
        dice.choice("under the wings", "at the tail")
        if kind == "airliner"
        else dice.choice("nose", "wings")
    )
    where = span * dice.between(0.35, 0.5)
    at_wing = middle - sweep * where / span
    if kind == "airliner" and engines == "under the wings":
        parts += mirrored(
            limb(
                (at_wing - 0.05, where, wing_z - 0.08),
                (at_wing + 0.28, where, wing_z - 0.08),
                0.06,
                0.075,
                0.02,
            )
        )
    elif kind == "airliner":
        parts += mirrored(
            limb(
                (x + 0.05, radius + 0.08, z + 0.05),
                (x + 0.35, radius + 0.08, z + 0.05),
                0.06,
                0.07,
                0.02,
            )
        )
    elif kind == "jet" and engines == "wings":
        parts += mirrored(
            limb(
                (middle - 0.2, where, wing_z - 0.1),
                (middle + 0.2, where, wing_z - 0.1),
                0.04,
                0.03,
                0.02,
            )
        )
    elif kind == "propeller" and engines == "wings":
        parts += mirrored(
            limb(
                (at_wing - 0.15, where, wing_z + 0.02),
                (at_wing + 0.26, where, wing_z + 0.02),
                0.06,
                0.085,
                0.03,
            )
        )
        parts += mirrored(
            box(
                (at_wing + 0.4, where, wing_z + 0.02), (0.04, 0.06, 0.38), roundness=0.8, blend=0.02
            )
        )
    elif kind in ("propeller", "biplane"):
        parts.append(box((front + 0.04, 0.0, z), (0.04, 0.07, 0.5), roundness=0.8, blend=0.02))
    if kind != "airliner":
        seat = dice.between(0.1, 0.35) * length / 2
        parts.append(
            ball(
                (seat, 0.0, z + radius * 0.85),
                (dice.between(0.25, 0.45), radius * 1.3, radius * 1.3),
                blend=0.03,
            )
        )
    if dice.chance(0.6):
        parts += mirrored(wheel((middle + 0.1, dice.between(0.15, 0.3), 0.08), 0.08, 0.05))
    return parts
