"""Four-legged animals and human figures."""

import numpy as np

from experiments.toynorb.solids import Dice, Solid, ball, box, limb, mirrored, tilted


def animal(dice: Dice, variant: int) -> list[Solid]:
    """A body on four legs in mid-step, with a neck, a head and whatever grows on them; cattle,
    dogs, cats, elephants, dinosaurs.

    Variants 3 and 7 rear up on their hind legs.
    """
    length = dice.between(0.8, 1.3)
    leg = dice.between(0.3, 0.62)
    stout = dice.between(0.15, 0.27)
    thick = dice.between(0.05, 0.1)
    hips_radius = stout * dice.between(0.75, 1.1)
    chest = (length / 2, 0.0, leg + stout * 0.7)
    hips = (-length / 2, 0.0, leg + hips_radius * 0.7 + dice.between(-0.08, 0.08))
    parts = [limb(hips, chest, hips_radius, stout, blend=0.1)]

    hind_legs = []
    # Legs: hip, knee, foot; a walking animal has one forward of its hip and the next behind.
    stride = dice.between(0.0, 0.22)
    for end, sign in ((chest, 1), (hips, -1)):
        knee_bend = dice.between(-0.05, 0.1) * sign
        for side in (1, -1):
            y = side * stout * dice.between(0.6, 0.85)
            step = stride * side * sign
            knee = (end[0] + step * 0.5 + knee_bend, y, leg * 0.5)
            upper = limb((end[0], y * 0.9, end[2] - 0.05), knee, thick * 1.5, thick, blend=0.06)
            lower = limb(knee, (end[0] + step, y, thick), thick, thick * 0.85, blend=0.03)
            (hind_legs if end is hips else parts).extend([upper, lower])

    neck_length = dice.choice("short", "short", "middle", "long")
    reach = {"short": 0.2, "middle": 0.38, "long": 0.62}[neck_length] * dice.between(0.85, 1.15)
    rise = dice.between(-0.1, 0.75) if neck_length == "short" else dice.between(0.7, 1.3)
    nape = (
        chest[0] + 0.08 + reach * np.cos(rise),
        dice.between(-0.1, 0.1),
        chest[2] + 0.05 + reach * np.sin(rise),
    )
    head = dice.between(0.11, 0.17)
    parts.append(limb((chest[0], 0.0, chest[2] + 0.04), nape, stout * 0.75, head * 0.8, blend=0.1))
    muzzle = dice.between(0.13, 0.3)
    droop = dice.between(-0.6, 0.05)
    nose = (nape[0] + muzzle * np.cos(droop), nape[1] * 1.2, nape[2] + muzzle * np.sin(droop))
    parts.append(limb(nape, nose, head, head * dice.between(0.45, 0.8), blend=0.05))

    top = dice.choice("ears", "ears", "horns", "large ears", "frill")
    x, y, z = nape
    if top == "ears":
        parts += pair(
            y,
            limb(
                (x - 0.03, 0.07, z + 0.08),
                (x - 0.05, 0.1, z + dice.between(0.16, 0.26)),
                0.045,
                0.02,
                0.02,
            ),
        )
    elif top == "horns":
        spread, tall = dice.between(0.1, 0.25), dice.between(0.12, 0.32)
        parts += pair(
            y,
            limb(
                (x, 0.06, z + 0.06),
                (x + dice.between(-0.1, 0.1), spread, z + tall),
                0.04,
                0.018,
                0.02,
            ),
        )
    elif top == "large ears":
        parts += pair(
            y, box((x - 0.05, 0.17, z - 0.02), (0.06, 0.18, 0.26), roundness=0.9, blend=0.02)
        )
    else:
        parts.append(box((x - 0.08, y, z + 0.08), (0.07, 0.42, 0.4), roundness=0.9, blend=0.04))
    if dice.chance(0.25):  # a trunk, or a horn on the nose
        down = dice.chance(0.5)
        parts.append(
            limb(
                nose,
                (nose[0] + 0.12, nose[1], nose[2] + (-0.32 if down else 0.2)),
                0.06,
                0.03,
                0.03,
            )
        )

    if variant in (3, 7):
        parts = tilted(parts, -dice.between(25, 60), hips)
    tail = dice.choice("thin", "thin", "thick", "short")
    root = (hips[0] - hips_radius * 0.6, 0.0, hips[2] + hips_radius * 0.3)
    swing, lift = dice.between(-0.2, 0.2), dice.between(-0.3, 0.25)
    if tail == "thin":
        middle = (root[0] - 0.22, swing / 2, root[2] + lift / 2 + 0.05)
        parts += [
            limb(root, middle, 0.05, 0.04, 0.03),
            limb(middle, (middle[0] - 0.15, swing, root[2] + lift), 0.04, 0.03, 0.02),
        ]
    elif tail == "thick":
        parts.append(
            limb(
                root,
                (root[0] - dice.between(0.35, 0.6), swing, root[2] + lift - 0.1),
                hips_radius * 0.6,
                0.04,
                0.1,
            )
        )
    else:
        parts.append(limb(root, (root[0] - 0.1, 0.0, root[2] + 0.04), 0.06, 0.05, 0.03))
    return parts + hind_legs


def human(dice: Dice, variant: int) -> list[Solid]:
    """A standing, walking, kneeling or crawling toy soldier, his hands full or empty, most of them
    on a base.
    """
    broad, waist = dice.between(0.16, 0.25), dice.between(0.13, 0.19)
    leg, thick = dice.between(0.6, 0.85), dice.between(0.065, 0.095)
    trunk = dice.between(0.42, 0.56)
    lean = dice.between(-0.08, 0.16)
    pose = (
        "stands",
        "walks",
        "kneels",
        "stands",
        "crawls",
        "walks",
        "stands",
        "kneels",
        "walks",
        "stands",
    )[variant]
    ground = 0.05
    height = ground + leg * (0.62 if pose == "kneels" else 1.0)

    pelvis, shoulders = (0.0, 0.0, height + 0.05), (lean, 0.0, height + trunk)
    parts = [limb(pelvis, shoulders, waist, broad, blend=0.08)]
    parts[0] = turned_flat(parts[0], dice.between(0.6, 0.85))
    head = (lean * 1.3, 0.0, shoulders[2] + broad * 0.5 + 0.17)
    parts.append(ball(head, (0.24, 0.21, 0.28), blend=0.06))
    wears = dice.choice("helmet", "hat", "feathers", "nothing")
    if wears == "helmet":
        parts.append(ball((head[0], 0.0, head[2] + 0.07), (0.33, 0.31, 0.2), blend=0.01))
    elif wears == "hat":
        parts.append(
            box((head[0], 0.0, head[2] + 0.1), (0.44, 0.42, 0.05), roundness=1.0, blend=0.02)
        )
        parts.append(
            box((head[0], 0.0, head[2] + 0.18), (0.22, 0.22, 0.18), roundness=1.0, blend=0.02)
        )
    elif wears == "feathers":
        parts.append(
            box(
                (head[0] - 0.05, 0.0, head[2] + 0.14),
                (0.1, 0.36, 0.34),
                narrowing=(0.6, 1.5),
                roundness=0.5,
            )
        )

    hip = waist * 0.6
    stride = dice.between(0.15, 0.3) if pose == "walks" else dice.between(0.0, 0.06)
    straddle = dice.between(0.02, 0.16)
    for side in (1, -1):
        y, foot_y = side * hip, side * (hip + straddle)
        if pose == "kneels" and side == 1:
            knee, foot = (0.3, foot_y, height - 0.02), (0.28, foot_y, ground + thick)
        elif pose == "kneels":
            knee, foot = (0.06, foot_y, ground + thick), (-0.36, foot_y, ground + thick)
        else:
            step = side * stride
            knee, foot = (
                (step * 0.6 + 0.06, (y + foot_y) / 2, height * 0.5),
                (step, foot_y, ground + thick),
            )
        parts.append(limb((0.0, y, height), knee, thick * 1.4, thick, blend=0.05))
        parts.append(limb(knee, foot, thick, thick * 0.85, blend=0.03))
        parts.append(
            limb(
                foot, (foot[0] + 0.13, foot[1], ground + 0.05), thick * 0.8, thick * 0.7, blend=0.03
            )
        )

    hands = []
    for side in (1, -1):
        gesture = dice.choice("down", "forward", "up", "aside")
        shoulder = (lean, side * (broad + 0.03), shoulders[2] - 0.02)
        elbow_offset, hand_offset = {
            "down": ((-0.03, 0.08, -0.26), (0.1, 0.1, -0.5)),
            "forward": ((0.1, 0.08, -0.24), (0.34, -0.02, -0.16)),
            "up": ((0.06, 0.22, -0.02), (0.14, 0.26, 0.26)),
            "aside": ((0.0, 0.22, -0.12), (0.12, 0.42, -0.06)),
        }[gesture]
        elbow = tuple(np.array(shoulder) + np.array(elbow_offset) * (1, side, 1))
        hand = tuple(np.array(shoulder) + np.array(hand_offset) * (1, side, 1))
        parts.append(limb(shoulder, elbow, 0.085, 0.065, blend=0.05))
        parts.append(limb(elbow, hand, 0.065, 0.055, blend=0.03))
        hands.append(hand)

    carries = dice.choice("rifle", "staff", "pack", "shield", "nothing")
    x, y, z = hands[0]
    if carries == "rifle":
        aim = dice.between(-0.3, 0.9)
        parts.append(
            limb((x - 0.25, y, z - 0.25 * aim), (x + 0.4, y, z + 0.4 * aim), 0.05, 0.03, 0.02)
        )
    elif carries == "staff":
        parts.append(
            limb((x, y + 0.02, z - 0.45), (x + 0.08, y + 0.02, z + 0.6), 0.035, 0.035, 0.02)
        )
    elif carries == "pack":
        parts.append(box((lean - 0.2, 0.0, shoulders[2] - 0.12), (0.18, 0.32, 0.38), blend=0.02))
    elif carries == "shield":
        parts.append(box((x + 0.05, y, z), (0.06, 0.36, 0.5), roundness=0.7, blend=0.02))
    if pose == "crawls":
        parts = tilted(parts, dice.between(55, 80), (0.0, 0.0, 0.0))
    elif dice.chance(0.7):
        parts.append(
            box(
                (0.05, 0.0, 0.025),
                (0.75, 0.5 + 2 * straddle, 0.05),
                edge=0.02,
                roundness=dice.between(0.2, 1.0),
                blend=0.02,
            )
        )
    return parts


def turned_flat(part: Solid, depth: float) -> Solid:
    """An upright limb, made shallower from front to back."""
    scale = np.array([depth, 1.0, 1.0], np.float32)
    return part._replace(
        half_size=part.half_size * scale,
        taper=part.taper * scale[:2],
        edge=part.edge * np.float32(depth),
    )


def pair(y: float, part: Solid) -> list[Solid]:
    """A solid and its mirror image on both sides of a head at `y`."""
    return [
        side._replace(center=side.center + np.array([0.0, y, 0.0], np.float32))
        for side in mirrored(part)
    ]
