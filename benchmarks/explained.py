"""The pictures of docs/explanation.md: what the methods do, on data whose denoiser is exact.

python benchmarks/pictures.py --only=explained_progressive,explained_dmd2

No network is trained. Where a picture shows a student, it is the one that its method converges to.
"""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from distill_jax.data import scenes
from distill_jax.diffusion import resize, samplers
from distill_jax.diffusion.analytic import Mixture, ring
from distill_jax.diffusion.denoiser import guided
from distill_jax.diffusion.pixels import normalise, to_uint8
from distill_jax.diffusion.schedule import Cosine, Karras, RectifiedFlow, add_noise

TEACHER, STUDENT, OTHER, DATA = "#3355bb", "#d1495b", "#2a9d8f", "#b8b8b8"
LINE = Mixture(np.array([[-0.7], [0.7]]), 0.12, np.array([0, 1]))  # Two modes on a line.
STARTS = np.array([-1.9, -1.0, -0.3, 0.3, 1.0, 1.9])  # Noise of the paths on the line.
FINE = 256  # Steps of a path that is as good as exact.


def path(denoiser, z, times, cond=None):
    """Returns the points (times, b, d) of DDIM from z at times[0] through the falling times."""
    shape, points = (len(z), *denoiser.shape), [z]
    call = jax.jit(denoiser.predict)
    for t, s in zip(times[:-1], times[1:], strict=True):
        t, s = (jnp.full(len(z), u, jnp.float32) for u in (t, s))
        prediction = call(jnp.asarray(points[-1], jnp.float32).reshape(shape), t, cond or {})
        points.append(np.asarray(samplers.ddim_step(denoiser.schedule, prediction, s)))
    return np.stack([np.reshape(point, (len(z), -1)) for point in points])


def on_line(schedule, first=1.0):
    """Returns the times and points (times, b) of the exact paths from STARTS on the line."""
    times = np.linspace(first, 0.0, FINE + 1)
    sigma = float(schedule.sigma(jnp.float32(first)))
    return times, path(LINE.denoiser(schedule), sigma * STARTS[:, None], times)[..., 0]


def panels(titles, width=2.6, height=2.4, **share):
    """Returns a figure and its axes, one for each title, in one row or, for a phone, two."""
    rows = 1 if len(titles) < 4 else 2
    columns = len(titles) // rows
    figure = Figure(figsize=(width * columns, height * rows), dpi=110, layout="constrained")
    axes = figure.subplots(rows, columns, **share).ravel()
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def in_time(axes, label="z"):
    """Lets the time fall from noise at the left to images at the right."""
    for axis in axes:
        axis.set_xlim(1.04, -0.04)
        axis.set_xlabel("t: 1 noise, 0 image", fontsize=8)
    axes[0].set_ylabel(label, fontsize=8)


def bare(axis):
    """Removes ticks and lines around an axis."""
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def in_plane(axes, limit=1.05):
    """Shows the data of the ring in grey, without ticks."""
    x = ring().sample(np.random.default_rng(0), np.full(1500, ring().num_classes))
    for axis in axes:
        axis.scatter(*x.T, s=1, color=DATA, zorder=0)
        axis.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
        bare(axis)


def progressive(out):
    times, exact = on_line(RectifiedFlow())
    figure, axes = panels(
        ("teacher: many steps", "student: 4 steps", "student: 2 steps", "student: 1 step"),
        sharey=True,
    )
    for axis, steps in zip(axes, (FINE, 4, 2, 1), strict=True):
        kept = slice(None, None, FINE // steps)
        axis.plot(times, exact, color=TEACHER, alpha=1.0 if steps == FINE else 0.25, lw=1)
        if steps < FINE:
            axis.plot(times[kept], exact[kept], "o-", color=STUDENT, lw=1.2, ms=3)
            alone = path(LINE.denoiser(RectifiedFlow()), STARTS[:, None], times[kept])[..., 0]
            axis.plot(0 * alone[-1], alone[-1], "x", color="black", ms=5)
    axes[3].annotate("x: the teacher in 1 step", (0.05, 0.0), (0.95, -0.06), fontsize=7)
    in_time(axes)
    figure.savefig(out)


def guidance(out):
    schedule, toy = Cosine(), ring()
    denoiser = toy.denoiser(schedule)
    null = {"label": jnp.full(1, toy.num_classes)}
    figure, axes = panels(("the teacher's x for one noisy z", "w = 0", "w = 1", "w = 4"), width=2.5)
    in_plane(axes)
    z, t = np.array([[0.25, -0.15]]), jnp.full(1, 0.6)
    arrows = ((0.0, TEACHER, "c"), (-1.0, OTHER, "u"), (1.0, STUDENT, "w = 1"))
    for w, color, name in arrows:
        predict = guided(denoiser, w, null).predict
        x = predict(jnp.float32(z).reshape(1, 1, 1, 2), t, {"label": jnp.zeros(1, int)}).x.ravel()
        head = {"arrowstyle": "->", "color": color, "lw": 1.5}
        axes[0].annotate("", x, z[0], arrowprops=head)
        axes[0].annotate(name, x, xytext=(3, 3), textcoords="offset points", color=color)
    axes[0].plot(*z.T, "o", color="black", ms=4)
    noise = np.random.default_rng(1).normal(size=(400, 2))
    for axis, w in zip(axes[1:], (0.0, 1.0, 4.0), strict=True):
        cond = {"label": jnp.zeros(len(noise), int)}
        x = path(guided(denoiser, w, null), noise, np.linspace(1, 0, 65), cond)[-1]
        axis.scatter(*x.T, s=3, color=STUDENT if w else TEACHER)
    figure.savefig(out)


def boot(out):
    schedule = Cosine()
    times, exact = on_line(schedule, 0.98)
    alpha, sigma = (
        np.asarray(f(jnp.asarray(times)))[:, None] for f in (schedule.alpha, schedule.sigma)
    )
    figure, axes = panels(("z: the teacher's paths", "y: the signal of the same paths"))
    axes[0].plot(times, exact, color=TEACHER, lw=1)
    signal = (exact - sigma * STARTS) / alpha
    axes[1].plot(times, signal, color=STUDENT, lw=1)
    step = slice(48, 112, 32)
    axes[1].plot(times[step], signal[step, -2], "o-", color="black", ms=4, lw=2)
    axes[1].annotate(
        "a step from t to s",
        (0.72, signal[64, -2]),
        (1.0, 0.7),
        fontsize=7,
        arrowprops={"arrowstyle": "-", "lw": 0.6},
    )
    in_time(axes)
    axes[1].set_ylabel("y", fontsize=8)
    figure.savefig(out)


def consistency(out):
    times, exact = on_line(RectifiedFlow())
    figure, axes = panels(
        ("distillation: a teacher's path", "training: the line to the noise"),
        sharey=True,
    )
    near = [64, 72]
    axes[0].plot(times, exact, color=DATA, lw=1)
    axes[0].plot(times, exact[:, -1], color=TEACHER, lw=1.2)
    z = exact[:, -1]
    line = exact[-1, -1] + times * (STARTS[-1] - exact[-1, -1])
    axes[1].plot(times, exact, color=DATA, lw=1)
    axes[1].plot(times, line, color=OTHER, lw=1.2)
    for axis, points in ((axes[0], z), (axes[1], line)):
        axis.plot(times[near], points[near], "o", color="black", ms=4)
        for i in near:
            head = {"arrowstyle": "->", "color": STUDENT, "connectionstyle": "arc3,rad=-0.25"}
            axis.annotate("", (0.0, points[-1]), (times[i], points[i]), arrowprops=head)
    in_time(axes)
    figure.savefig(out)


def meanflow(out):
    times, exact = on_line(RectifiedFlow())
    figure, axes = panels(("velocity: the tangent at t", "average velocity: from t to r"))
    z = exact[:, 4]
    i, k = 40, 200
    for axis in axes:
        axis.plot(times, exact, color=DATA, lw=1)
        axis.plot(times, z, color=TEACHER, lw=1.2)
    slope = (z[i + 1] - z[i]) / (times[i + 1] - times[i])
    ends = np.array([times[i], 0.0])
    axes[0].plot(ends, z[i] + slope * (ends - times[i]), color=OTHER, lw=1.5)
    axes[0].plot(0, z[i] - slope * times[i], "x", color="black")
    axes[1].plot(times[[i, k]], z[[i, k]], "o-", color=STUDENT, lw=1.5, ms=4)
    for name, j in (("t", i), ("r", k)):
        axes[1].annotate(name, (times[j], z[j]), xytext=(0, 6), textcoords="offset points")
    in_time(axes)
    figure.savefig(out)


def score_difference(x, levels, rng):
    """Returns the mean of teacher's x less the fake's x on noisy points x, over noise levels.

    The fake is the exact denoiser of the points themselves, as after endless training.
    """
    schedule = Karras()
    fake = Mixture(x, 0.06, np.zeros(len(x), int)).denoiser(schedule)
    total = np.zeros_like(x)
    for level in levels:
        t = jnp.full(len(x), schedule.time(-2 * jnp.log(level)))
        z = jnp.float32(x + level * rng.normal(size=x.shape)).reshape(-1, 1, 1, 2)
        both = (_denoise(d)(z, t).reshape(-1, 2) for d in (ring().denoiser(schedule), fake))
        ours, theirs = map(np.asarray, both)
        total += ours - theirs
    return total / len(levels)


def _denoise(denoiser):
    return lambda z, t: denoiser(z, t, {}).x


def dmd2(out):
    rng = np.random.default_rng(0)
    x = 0.25 * rng.normal(size=(200, 2)) + np.array([-0.2, 0.1])
    levels = (0.1, 0.2, 0.4, 0.8)
    shown = (0, 10, 60)
    figure, axes = panels(
        [f"after {n} updates" if n else "at first" for n in shown], width=2.2, height=2.5
    )
    in_plane(axes)
    for n in range(max(shown) + 1):
        move = np.mean([score_difference(x, levels, rng) for _ in range(2)], axis=0)
        if n in shown:
            axis = axes[shown.index(n)]
            axis.scatter(*x.T, s=5, color=STUDENT)
            axis.quiver(
                *x[::2].T,
                *move[::2].T,
                color=TEACHER,
                angles="xy",
                scale_units="xy",
                scale=0.7,
                width=0.005,
            )
        x = x + 0.5 * move
    figure.savefig(out)


def sid(out):
    schedule, toy = Karras(), ring()
    lost = Mixture(np.asarray(toy.means)[:5], 0.12, toy.labels[:5])
    grid = np.linspace(-1.4, 1.4, 90)
    z = jnp.asarray(np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 1, 1, 2), jnp.float32)
    levels = (0.15, 0.4, 1.0)
    figure, axes = panels([f"noise level {level:g}" for level in levels], width=2.2, height=2.5)
    x = lost.sample(np.random.default_rng(0), np.full(300, lost.num_classes))
    in_plane(axes, 1.4)
    for axis, level in zip(axes, levels, strict=True):
        t = jnp.full(len(z), schedule.time(-2 * jnp.log(level)))
        teacher, fake = (m.denoiser(schedule)(z, t, {}).x.reshape(-1, 2) for m in (toy, lost))
        gap = np.linalg.norm(teacher - fake, axis=-1).reshape(len(grid), -1)
        axis.imshow(gap, extent=(-1.4, 1.4) * 2, origin="lower", cmap="Blues", zorder=-1)
        axis.scatter(*x.T, s=3, color=STUDENT)
    figure.savefig(out)


def swd(out):
    drawn = scenes.draw(
        [scenes.parse("a red circle above a blue square")], np.random.default_rng(3)
    )
    x = jnp.asarray(normalise(jnp.asarray(drawn)), jnp.float32)
    schedule, key = RectifiedFlow(), jax.random.key(0)
    sides, times = (4, 8, 16), (1.0, 0.75, 0.5)
    noise = jax.random.normal(key, (1, sides[0], sides[0], 3))
    shown, z = [], noise
    for i, (side, t) in enumerate(zip(sides, times, strict=True)):
        if i:
            large = resize.bicubic(shown[-1][1], side)
            eps = jax.random.normal(jax.random.fold_in(key, i), large.shape)
            z = add_noise(schedule, large, eps, jnp.full(1, t))
            shown.append((f"enlarged: {side} x {side}", large))
        shown.append((f"call {i + 1}, t = {t:g}", z))
        shown.append((f"its image: {side} x {side}", resize.area(x, side)))
    figure, axes = panels([title for title, _ in shown], width=1.35, height=1.6)
    for axis, (_, image) in zip(axes, shown, strict=True):
        axis.imshow(to_uint8(np.clip(np.asarray(image[0]), -1, 1)), interpolation="nearest")
        bare(axis)
        axis.title.set_fontsize(8)
    figure.savefig(out)


EXPLAINED = {
    f"explained_{function.__name__}": function
    for function in (progressive, guidance, boot, consistency, meanflow, sid, dmd2, swd)
}
