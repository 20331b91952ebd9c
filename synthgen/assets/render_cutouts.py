"""Render the dog cut-outs that ship with the package, from the articulated dog of dm-control.

Not needed at run time. To run it: unpack the dm-control 1.0.50 wheel, `pip install mujoco
pyopengl`, then `MUJOCO_GL=egl python -m synthgen.assets.render_cutouts UNPACKED_WHEEL OUT --count
240 --seed 0`. Each file is `OUT/dog/{coat}_{seed}_{number}.webp`: RGBA, cropped to the dog; alpha
is its exact, antialiased mask.
"""

import argparse
from pathlib import Path

import mujoco  # type: ignore[import-not-found, import-untyped, unused-ignore]
import numpy as np
from numpy.typing import NDArray
from PIL import Image

RENDER_SIDE = 512  # px; twice the size that is kept, so that the edge of the mask is antialiased
Colour = tuple[int, int, int]

# The coats: the name of each (the words of a prompt), and the pairs of colours (base, patches) that
# it is sampled from.
COATS: dict[str, list[tuple[Colour, Colour]]] = {
    "brown": [
        ((150, 92, 52), (120, 70, 38)),
        ((112, 66, 38), (90, 52, 30)),
        ((176, 112, 66), (140, 84, 46)),
    ],
    "white": [((245, 243, 238), (228, 222, 212)), ((236, 232, 224), (250, 250, 248))],
    "black": [((44, 42, 44), (30, 29, 32)), ((58, 54, 52), (38, 36, 36))],
    "white-and-black": [((242, 240, 236), (40, 38, 40)), ((44, 42, 44), (238, 236, 232))],
    "white-and-brown": [((242, 238, 230), (140, 86, 50)), ((150, 92, 52), (240, 236, 228))],
}


def load_dog(wheel: Path) -> mujoco.MjModel:
    """Return the dog of the unpacked wheel: its skin alone, with one movable light."""
    assets = wheel / "dm_control/suite/dog_assets"
    folder = wheel / "dm_control/locomotion/walkers/assets/dog_v2"
    xml = (folder / "dog.xml").read_text()
    xml = xml.replace("../../../../suite/dog_assets", str(assets))
    xml = xml.replace("dog_skin.skn", str(folder / "dog_skin.skn"))
    spec = mujoco.MjSpec.from_string(xml)
    spec.worldbody.add_light(
        name="sun", type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL, pos=[0, 0, 4], dir=[0, 0, -1]
    )
    return spec.compile()


def make_noise_mask(rng: np.random.Generator, side: int) -> NDArray[np.float64]:
    """Return soft blobs (side, side) in [0, 1]: where the patches of a coat are."""
    cells = int(rng.integers(4, 9))
    grid = (rng.random((cells, cells)) * 255).astype(np.uint8)
    enlarged = Image.fromarray(grid).resize((side, side), Image.Resampling.BICUBIC)
    return np.clip((np.asarray(enlarged) / 255 - rng.uniform(0.4, 0.6)) * 8 + 0.5, 0, 1)


def make_coat_texture(
    rng: np.random.Generator, skin: NDArray[np.uint8], base: Colour, patch: Colour
) -> NDArray[np.uint8]:
    """Return a skin texture (H, W, 3) with its luminance, in the two colours of a coat."""
    luminance = skin.astype(float).mean(2, keepdims=True) / skin.mean()
    mask = make_noise_mask(rng, skin.shape[0])[..., None]
    colour = np.array(base) * (1 - mask) + np.array(patch) * mask
    grain = rng.normal(1, 0.06, (*skin.shape[:2], 1))
    return np.clip(colour * luminance * grain, 0, 255).astype(np.uint8)


class DogStudio:
    """A renderer of the dog in random poses, coats, lights and views."""

    def __init__(self, wheel: Path) -> None:
        self.model = load_dog(wheel)
        self.data = mujoco.MjData(self.model)
        self.gl = mujoco.GLContext(RENDER_SIDE, RENDER_SIDE)
        self.gl.make_current()
        self.context = mujoco.MjrContext(self.model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self.context)
        self.scene = mujoco.MjvScene(self.model, maxgeom=1000)
        self.option = mujoco.MjvOption()
        self.option.geomgroup[:] = 0
        self.option.sitegroup[:] = 0
        self.option.flags[mujoco.mjtVisFlag.mjVIS_SKIN] = 1
        self.texture = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_TEXTURE, "skin")
        self.skin = self._view_texture().copy()

    def _view_texture(self) -> NDArray[np.uint8]:
        """Return a view (H, W, C) of the skin texture."""
        height = self.model.tex_height[self.texture]
        width = self.model.tex_width[self.texture]
        channels = self.model.tex_nchannel[self.texture]
        start = self.model.tex_adr[self.texture]
        texels = self.model.tex_data[start : start + height * width * channels]
        return texels.reshape(height, width, channels)

    def set_coat(self, rng: np.random.Generator, coat: str) -> None:
        """Give the dog a random coat of this name."""
        base, patch = COATS[coat][rng.integers(len(COATS[coat]))]
        self._view_texture()[:] = make_coat_texture(rng, self.skin, base, patch)
        mujoco.mjr_uploadTexture(self.model, self.context, self.texture)

    def set_pose(self, rng: np.random.Generator) -> None:
        """Give the dog a random pose."""
        mujoco.mj_resetData(self.model, self.data)
        for joint in range(self.model.njnt):
            if self.model.jnt_limited[joint]:
                low, high = self.model.jnt_range[joint]
                angle = np.clip(rng.normal(0, 0.09 * (high - low)), low, high)
                self.data.qpos[self.model.jnt_qposadr[joint]] = angle
        mujoco.mj_forward(self.model, self.data)

    def set_light(self, rng: np.random.Generator) -> None:
        """Set a random light."""
        self.model.vis.headlight.ambient[:] = rng.uniform(0.25, 0.45)
        self.model.vis.headlight.diffuse[:] = rng.uniform(0.15, 0.35)
        self.model.light_diffuse[:] = rng.uniform(0.35, 0.6)
        self.model.light_dir[:] = [rng.uniform(-0.8, 0.8), rng.uniform(-0.8, 0.8), -1]

    def sample_camera(self, rng: np.random.Generator) -> mujoco.MjvCamera:
        """Return a camera at a random place around the dog."""
        camera = mujoco.MjvCamera()
        camera.lookat[:] = self.data.subtree_com[1]
        camera.azimuth = rng.choice([-90, 90]) + rng.uniform(-70, 70)
        camera.elevation = rng.uniform(-25, -2)
        camera.distance = 1.85
        return camera

    def render(self, camera: mujoco.MjvCamera) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Return an image (H, W, 3) uint8 of the dog, and its mask (H, W)."""
        rgb = np.zeros((RENDER_SIDE, RENDER_SIDE, 3), np.uint8)
        depth = np.zeros((RENDER_SIDE, RENDER_SIDE), np.float32)
        viewport = mujoco.MjrRect(0, 0, RENDER_SIDE, RENDER_SIDE)
        mujoco.mjv_updateScene(
            self.model,
            self.data,
            self.option,
            None,
            camera,
            mujoco.mjtCatBit.mjCAT_ALL.value,
            self.scene,
        )
        mujoco.mjr_render(viewport, self.scene, self.context)
        mujoco.mjr_readPixels(rgb, depth, viewport, self.context)
        is_reversed = depth[0, 0] < depth.max()  # newer versions reverse the depth buffer
        background = depth.min() if is_reversed else depth.max()
        return rgb[::-1], (depth != background)[::-1]

    def render_cutout(self, rng: np.random.Generator, coat: str) -> Image.Image:
        """Return a cut-out of the dog with a coat, in a random pose, light and view."""
        self.set_coat(rng, coat)
        while True:  # a stretched leg sometimes leaves the frame: then the next pose is tried
            self.set_pose(rng)
            self.set_light(rng)
            rgb, mask = self.render(self.sample_camera(rng))
            if not (mask[[0, -1]].any() or mask[:, [0, -1]].any()):
                return cut_out(rgb, mask)


def cut_out(rgb: NDArray[np.uint8], mask: NDArray[np.bool_]) -> Image.Image:
    """Return the masked part of an image as RGBA at half its size, cropped to what is visible.

    Args:
        rgb: (H, W, 3).
        mask: (H, W).
    """
    n = rgb.shape[0] // 2
    alpha = mask.reshape(n, 2, n, 2).mean((1, 3))
    masked = (rgb * mask[..., None]).reshape(n, 2, n, 2, 3).mean((1, 3))
    colour = masked / np.maximum(alpha, 1e-6)[..., None]
    ys, xs = np.nonzero(alpha >= 0.5)
    rgba = np.dstack([colour, alpha * 255]).round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(rgba[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    studio = DogStudio(args.wheel.resolve())
    folder = args.out / "dog"
    folder.mkdir(parents=True, exist_ok=True)
    coats = list(COATS)
    for i in range(args.count):
        coat = coats[i % len(coats)]
        image = studio.render_cutout(np.random.default_rng([args.seed, i]), coat)
        path = folder / f"{coat}_{args.seed}_{i:04d}.webp"
        image.save(path, quality=88, alpha_quality=100, method=6)


if __name__ == "__main__":
    main()
