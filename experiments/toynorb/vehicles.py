"""Trucks and cars."""

from experiments.toynorb.solids import Dice, Solid, box, limb, mirrored, turn, wheel


def truck(dice: Dice, variant: int) -> list[Solid]:
    """A cab, and behind it on the same or another frame what it carries: a box, a tank, a dump bed,
    logs; or a bus or van in one.
    """
    kind = ("box", "tank", "dump", "flatbed", "bus", "pickup", "box", "bus", "flatbed", "pickup")[
        variant
    ]
    width = dice.between(0.5, 0.66)
    wheel_radius = dice.between(0.12, 0.17)
    floor = wheel_radius * dice.between(1.0, 1.4)
    cab_length, cab_height = dice.between(0.32, 0.45), dice.between(0.45, 0.62)
    load_length = dice.between(0.8, 1.4)
    if kind in ("bus", "pickup"):
        load_length = dice.between(0.7, 1.0)
    hood = (
        dice.between(0.25, 0.4)
        if kind == "pickup" or (kind != "bus" and dice.chance(0.45))
        else 0.0
    )
    gap = 0.0 if kind == "bus" else dice.between(0.02, 0.1)
    back = -load_length
    cab_x = gap + cab_length / 2
    front = gap + cab_length + hood
    parts = []
    if kind == "bus":
        parts.append(
            box(
                ((front + back) / 2, 0.0, floor + cab_height * 0.5),
                (front - back, width, cab_height * dice.between(1.0, 1.2)),
                edge=dice.between(0.03, 0.1),
                narrowing=(dice.between(0.9, 1.0), dice.between(0.85, 1.0)),
                roundness=dice.between(0.1, 0.4),
            )
        )
        if dice.chance(0.6):  # a short snout
            parts.append(
                box(
                    (front + 0.08, 0.0, floor + 0.13),
                    (0.25, width * 0.95, 0.24),
                    edge=0.06,
                    blend=0.06,
                )
            )
        if dice.chance(0.5):
            parts.append(
                box(
                    ((front + back) / 2, 0.0, floor + cab_height * 1.1),
                    ((front - back) * 0.6, width * 0.6, 0.06),
                )
            )
    else:
        parts.append(box(((front + back) / 2, 0.0, floor), (front - back, width * 0.75, 0.09)))
        narrowing = dice.between(0.6, 0.95), dice.between(0.8, 0.97)
        edge = dice.between(0.02, 0.09)
        parts.append(
            box(
                (cab_x, 0.0, floor + cab_height / 2),
                (cab_length, width, cab_height),
                edge,
                narrowing,
            )
        )
        if hood:
            height = cab_height * dice.between(0.42, 0.6)
            parts.append(
                box(
                    (front - hood / 2, 0.0, floor + height / 2),
                    (hood + 0.05, width * dice.between(0.7, 0.98), height),
                    0.05,
                )
            )
    load_z, load_x = floor + 0.05, back / 2
    if kind == "box":
        height = dice.between(0.45, 0.8)
        parts.append(
            box(
                (load_x, 0.0, load_z + height / 2),
                (load_length, width * 1.05, height),
                dice.between(0.01, 0.04),
            )
        )
    elif kind == "tank":
        radius = width * dice.between(0.42, 0.52)
        parts.append(
            limb(
                (-radius * 0.7, 0.0, load_z + radius),
                (back + radius * 0.7, 0.0, load_z + radius),
                radius,
                radius,
                0.01,
            )
        )
        parts.append(box((load_x, 0.0, load_z + 2 * radius), (0.15, 0.15, 0.08), roundness=1.0))
    elif kind in ("dump", "pickup"):
        height = dice.between(0.2, 0.4) if kind == "dump" else dice.between(0.15, 0.22)
        wall = 0.05
        tilt = turn(1, dice.between(0, 12)) if kind == "dump" else None
        parts.append(
            box((load_x, 0.0, load_z + wall), (load_length, width, wall), 0.02, turned=tilt)
        )
        parts += mirrored(
            box(
                (load_x, width / 2, load_z + height / 2),
                (load_length, wall, height),
                0.02,
                turned=tilt,
            )
        )
        for x in (0.0, back):
            # Tilted around its middle, the load bed is as much higher at one end as it is lower at
            # the other.
            z = load_z + height / 2 - (0.0 if tilt is None else (x - load_x) * tilt[0, 2])
            parts.append(box((x, 0.0, z), (wall, width, height), 0.02))
    elif kind == "flatbed":
        carries = dice.choice("logs", "crates", "crane")
        parts.append(box((load_x, 0.0, load_z), (load_length, width, 0.06), 0.02))
        if carries == "logs":
            for y, z in ((0.13, 0.12), (-0.13, 0.12), (0.0, 0.32)):
                parts.append(
                    limb((-0.1, y, load_z + z), (back + 0.1, y, load_z + z), 0.11, 0.11, 0.01)
                )
        elif carries == "crates":
            parts.append(box((back * 0.3, 0.0, load_z + 0.17), (0.34, 0.36, 0.3), 0.02))
            parts.append(box((back * 0.75, 0.05, load_z + 0.13), (0.3, 0.3, 0.22), 0.02))
        else:
            parts.append(box((back * 0.5, 0.0, load_z + 0.13), (0.3, 0.34, 0.24), 0.03))
            parts.append(
                limb((back * 0.6, 0.0, load_z + 0.25), (0.1, 0.0, load_z + 0.62), 0.06, 0.05, 0.02)
            )
    if kind != "bus" and dice.chance(0.4):
        parts += mirrored(
            limb(
                (gap - 0.02, width * 0.42, floor),
                (gap - 0.02, width * 0.42, floor + cab_height * 1.25),
                0.03,
                0.03,
                0.01,
            )
        )

    axles = [front - dice.between(0.15, 0.22), back + dice.between(0.15, 0.25)]
    if kind not in ("bus", "pickup") and dice.chance(0.7):
        axles.append(axles[1] + 2.2 * wheel_radius)
    for x in axles:
        parts += mirrored(wheel((x, width / 2 - 0.04, wheel_radius), wheel_radius, 0.1))
    return parts


def car(dice: Dice, variant: int) -> list[Solid]:
    """A sedan, a station wagon, a sports car, a jeep, a van or an open racing car."""
    kind = (
        "sedan",
        "wagon",
        "sports",
        "jeep",
        "open",
        "van",
        "sedan",
        "wagon",
        "open",
        "jeep",
    )[variant]
    length, width = dice.between(1.5, 1.9), dice.between(0.62, 0.78)
    wheel_radius = dice.between(0.13, 0.18)
    tall = {"jeep": 0.34, "van": 0.36, "sports": 0.21, "open": 0.24}.get(kind, 0.27) * dice.between(
        0.9, 1.1
    )
    floor = wheel_radius * (1.1 if kind == "jeep" else 0.65)
    edge = dice.between(0.04, 0.11) if kind != "jeep" else 0.03
    waist = floor + tall
    front, back = length / 2, -length / 2
    round_corner = dice.between(0.15, 0.55) if kind != "jeep" else 0.1
    narrowing = (dice.between(0.88, 1.0), dice.between(0.86, 0.98))
    parts = [
        box(
            (0.0, 0.0, floor + tall / 2),
            (length, width, tall),
            edge,
            narrowing,
            roundness=round_corner,
        )
    ]
    if kind in ("sports", "sedan", "open"):  # a hood that slopes
        slope = turn(1, dice.between(2, 8))
        parts.append(
            box(
                (front - length * 0.2, 0.0, waist - 0.06),
                (length * 0.4, width * 0.9, 0.12),
                0.05,
                turned=slope,
                blend=0.05,
            )
        )

    cabin_length = {"sedan": 0.5, "wagon": 0.68, "sports": 0.42, "jeep": 0.5, "van": 0.8}.get(
        kind, 0.0
    ) * length
    cabin_height = dice.between(0.2, 0.3) * (
        0.85 if kind == "sports" else 1.25 if kind in ("jeep", "van") else 1.0
    )
    seat = {"wagon": -0.12, "van": -0.08, "sports": -0.08, "jeep": -0.1}.get(kind, -0.04) * length
    if kind == "open":
        parts.append(
            box(
                (length * 0.1, 0.0, waist + 0.08),
                (0.05, width * 0.85, 0.2),
                0.02,
                turned=turn(1, -30),
            )
        )
        parts += mirrored(
            box((-length * 0.08, 0.16, waist + 0.06), (0.09, 0.2, 0.26), 0.04, turned=turn(1, -12))
        )
        parts.append(
            box((-length * 0.3, 0.0, waist), (length * 0.3, width * 0.85, 0.1), 0.05, blend=0.04)
        )
    else:
        upper = {"jeep": (0.95, 0.95), "van": (0.85, 0.85)}.get(
            kind, (dice.between(0.5, 0.75), dice.between(0.7, 0.85))
        )
        parts.append(
            box(
                (seat, 0.0, waist + cabin_height / 2 - 0.02),
                (cabin_length, width * 0.93, cabin_height),
                edge * 0.7,
                upper,
                blend=0.03,
            )
        )
    extra = dice.choice("spoiler", "rack", "spare wheel", "scoop", "nothing")
    if extra == "spoiler" and kind != "van":
        parts.append(box((back + 0.1, 0.0, waist + 0.16), (0.16, width * 0.9, 0.04), 0.02))
        parts += mirrored(box((back + 0.12, width * 0.35, waist + 0.08), (0.08, 0.04, 0.16), 0.01))
    elif extra == "rack" and kind != "open":
        parts.append(
            box(
                (seat, 0.0, waist + cabin_height + 0.03),
                (cabin_length * 0.5, width * 0.6, 0.07),
                0.02,
            )
        )
    elif extra == "spare wheel":
        parts.append(box((back - 0.03, 0.0, waist - 0.04), (0.1, 0.28, 0.28), 0.04, roundness=0.5))
    elif extra == "scoop":
        parts.append(box((front - length * 0.2, 0.0, waist + 0.02), (0.25, 0.2, 0.1), 0.03))
    if dice.chance(0.5):  # bumpers
        for x in (front, back):
            parts.append(box((x, 0.0, floor + 0.08), (0.08, width * 0.95, 0.08), 0.03))
    axle = dice.between(0.29, 0.34) * length
    for x in (axle, -axle):
        parts += mirrored(wheel((x, width / 2 - 0.03, wheel_radius), wheel_radius, 0.1))
    return parts
