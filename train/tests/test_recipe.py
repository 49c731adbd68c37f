"""The parts of the recipe that a configuration switches on: spectral norm, dropout, adversary, Muon, redrawn latents, LPIPS."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pictures import write_array
from running import same, train
from safetensors.torch import save_file
from tessera_train import __main__ as cli
from tessera_train.data.latents import Latents
from tessera_train.data.pictures import Pictures
from tessera_train.export.model import Model
from tessera_train.export.weights import load_ema, read_ema
from tessera_train.nets import dropout, sampler, spectral
from tessera_train.nets.arch import autoencoder_identity
from tessera_train.nets.autoencoder import Autoencoder
from tessera_train.nets.precond import Denoiser
from tessera_train.nets.unet import UNet
from tessera_train.training import autoencoder, diffusion, muon, perceptual
from tessera_train.training.adversarial import Adversary, Discriminators
from tessera_train.training.autoencoder import place_windows
from tessera_train.training.config import Config

EVERYTHING = """
spectral_norm = true
dropout = 0.1
dropout_over = "both"
adversarial = 0.5
adversarial_from = 0.5
adversarial_width = 8
adversarial_levels = 2
adversarial_rate = 2.0
optimizer = "muon"
"""

@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def configuration(path: Path, switches: str) -> str:
    """The tiny one with other switches in [autoencoder]."""
    head, section, rest = Config("tiny").texts[0].partition("[autoencoder]\n")
    own, phases, rest = rest.partition("\n[[autoencoder.phases]]")
    kept = [line for line in own.split("\n") if not line.startswith(("spectral_norm", "dropout", "adversarial"))]
    path.write_text(head + section + switches + "\n".join(kept) + phases + rest)
    return str(path)


def test_a_resumed_run_is_exact_with_every_part_on(tmp_path):
    """Stopped before and after the adversary begins: networks, optimisers and power iterations, bit for bit."""
    config, pictures = configuration(tmp_path / "c.toml", EVERYTHING), write_array(tmp_path / "pictures")
    whole = train(pictures, tmp_path / "whole", 6, config=config)
    train(pictures, tmp_path / "parts", 6, 2, config)
    train(pictures, tmp_path / "parts", 6, 4, config)
    parts = train(pictures, tmp_path / "parts", 6, config=config)
    assert same(whole, parts)
    assert whole["adversary"]["optimizer"]["state"][0]["step"] == 3  # of six steps the second half


def test_a_checkpoint_with_other_parts_is_not_continued(tmp_path):
    """The error names the part."""
    pictures = write_array(tmp_path / "pictures")
    train(pictures, tmp_path / "run", 1, config=configuration(tmp_path / "c.toml", "spectral_norm = true\n"))
    with pytest.raises(SystemExit, match="trained with spectral_norm True, the configuration says False"):
        train(pictures, tmp_path / "run", 2, config=configuration(tmp_path / "d.toml", "spectral_norm = false\n"))


def test_spectral_norm_sits_where_it_should():
    """On every convolution of the encoder; on the U-Net's 3x3 and q, k, v, but on none that starts as zero."""
    arch = Config("tiny").arch
    unet = UNet(arch)
    zero = {layer for layer in unet.modules() if isinstance(layer, torch.nn.Conv2d) and not layer.weight.any()}
    chosen = spectral.unet_convolutions(unet)
    names = {name.rpartition(".")[2] for name, layer in unet.named_modules() if layer in chosen}
    assert names == {"enter", "conv1", "q", "k", "v"} and not zero & set(chosen)
    assert not any(layer is unet.coarsest.block.conv1 for layer in chosen)  # 1x1
    encoder = Autoencoder(arch).encoder
    assert len(spectral.all_convolutions(encoder)) == sum(x.dim() == 4 for x in encoder.parameters())


def test_spectral_norm_is_one_and_folds_away():
    """Power iteration finds the largest singular value; the folded network is plain and computes the same."""
    arch = Config("tiny").arch
    torch.manual_seed(0)
    net = Autoencoder(arch).train()
    names = set(net.state_dict())
    spectral.normalise(spectral.all_convolutions(net.encoder))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for _ in range(200):  # every access is a power iteration
            [layer.weight for layer in spectral.all_convolutions(net.encoder)]
        folded = spectral.folded(net)
        assert set(folded.state_dict()) == names
        for layer in spectral.all_convolutions(folded.encoder):
            assert abs(float(spectral.sigma(layer.weight)) - 1) < 1e-5
        for (a, b), (c, d) in zip(net.eval().encoder(x), folded.eval().encoder(x)):
            assert torch.allclose(a, c, atol=1e-3) and torch.allclose(b, d, atol=1e-3)
    assert spectral.folded(folded) is folded
    net.train().encoder(x)  # the original is as it was


def test_weights_of_a_normalised_run_are_plain_ones(tmp_path):
    """Inference loads them as any others; another normalised run that starts from them starts where they are."""
    config = configuration(tmp_path / "c.toml", "spectral_norm = true\n")
    train(write_array(tmp_path / "pictures"), tmp_path / "run", 2, config=config)
    net = Autoencoder(Config("tiny").arch)
    source = tmp_path / "run", autoencoder_identity(Config("tiny").arch), torch.device("cpu")
    load_ema(source[0], net, *source[1:])
    weights, _ = read_ema(*source)
    again = Autoencoder(Config("tiny").arch)
    spectral.normalise(spectral.all_convolutions(again.encoder))
    spectral.load_plain(again, weights)
    for name, value in spectral.fold(again.state_dict()).items():
        assert torch.allclose(value, net.state_dict()[name], atol=1e-6), name


def test_dropout_decreases_over_resolutions_and_time():
    """None at the finest stage, none at the end, the product of both; every block gets its stage's."""
    assert dropout.rates(0.1, "resolution", 3, 0.9) == [0.0, 0.05, 0.1]
    assert dropout.rates(0.1, "time", 3, 0.5) == [0.05, 0.05, 0.05]
    assert dropout.rates(0.2, "both", 3, 0.5) == [0.0, 0.05, 0.1] and dropout.rates(0.2, "both", 3, 1.0) == [0.0] * 3
    unet = UNet(Config("tiny").arch)
    dropout.apply(unet, 0.1, "resolution", 0.0)
    assert [stage.encoder[0].dropout for stage in unet.stages] == [0.0, 0.05, 0.1] and unet.coarsest.block.dropout == 0.1
    encoder = Autoencoder(Config("tiny").arch).encoder
    dropout.apply(encoder, 0.4, "resolution", 0.0)
    assert [stage.down.dropout for stage in encoder.stages[1:]] == [0.1, 0.2, 0.3, 0.4]
    with pytest.raises(ValueError, match="dropout_over is 'space'"):
        dropout.rates(0.1, "space", 3, 0.0)
    with pytest.raises(ValueError, match="dropout is 1.5"):
        dropout.rates(1.5, "time", 3, 0.0)


def test_the_adversary_learns_and_weighs_as_ldm_does():
    """Its hinge loss falls on two kinds of windows that differ; the weight is the ratio of the gradients' norms."""
    torch.manual_seed(0)
    adversary = Adversary(8, 1, 1.0, torch.device("cpu"))
    scale = torch.ones(3, requires_grad=True)
    target, raw, losses = torch.rand(4, 3, 64, 64), torch.rand(4, 3, 64, 64) * 0.2 - 0.9, []
    for _ in range(30):
        out = raw * scale.view(1, 3, 1, 1)
        reconstruction = (out - target).abs().mean()
        weight, loss = adversary.generator_loss(target, out, reconstruction, scale)
        losses.append(adversary.backward())
        adversary.step(2e-3)
    wanted = torch.autograd.grad(reconstruction, scale, retain_graph=True)[0].norm()
    assert losses[-1] < 0.5 * losses[0]
    assert weight > 0 and not weight.requires_grad and loss.requires_grad
    adversary.net.requires_grad_(False).eval()
    own = torch.autograd.grad(-adversary.net(raw * scale.view(1, 3, 1, 1))[0].mean(), scale)[0].norm()
    again, _ = adversary.generator_loss(target, raw * scale.view(1, 3, 1, 1), (raw * scale.view(1, 3, 1, 1) - target).abs().mean(), scale)
    assert torch.allclose(again, wanted / (own + 1e-4), rtol=1e-3)


def test_the_adversary_remembers_pictures_in_either_precision():
    """Half of a batch comes from the buffer once that is full, also where convolutions are in bf16."""
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        adversary, last = Adversary(8, 1, 1.0, torch.device("cpu"), replay=4), torch.ones(3, requires_grad=True)
        for k in range(2):
            out = torch.full((4, 3, 64, 64), 0.25 * k) * last.view(1, 3, 1, 1)
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                adversary.generator_loss(torch.rand(4, 3, 64, 64), out, out.mean(), last)
                mixed = adversary.replayed(out.detach())
                adversary.backward()
            assert mixed.dtype == out.dtype and mixed[:, 0, 0, 0].tolist() == ([0.0] * 4 if k == 0 else [0.0, 0.0, 0.25, 0.25])


def test_a_discriminator_sees_its_level_of_the_pyramid():
    """A change that halving removes is seen by the first alone, one of the mean by the last alone."""
    torch.manual_seed(0)
    net = Discriminators(8, 3).eval().requires_grad_(False)  # in evaluation the vectors of spectral norm stay as they are
    x = torch.rand(1, 3, 96, 128)
    checkers = 0.1 * (-1.0) ** (torch.arange(96).view(-1, 1) + torch.arange(128))
    for change, changed in ((checkers, [True, False, False]), (0.5, [False, False, True])):
        moved = [float((a - b).abs().max()) for a, b in zip(net(x), net(x + change))]
        assert [y > 1e-4 for y in moved] == changed, moved
    assert [y.shape[3] for y in net(x)] == [30, 14, 6]
    assert Discriminators(8, 1)(x)[0].shape == (1, 1, 10, 14)  # patches of 70 x 70


def test_muons_updates_are_orthogonal():
    """Singular values near 1 for wide, tall and square matrices of any scale; the update's root mean square is a fifth of the
    learning rate."""
    torch.manual_seed(0)
    for shape, scale in (((33, 290), 1e-3), ((129, 40), 1.0), ((64, 64), 1e3)):
        values = torch.linalg.svdvals(muon.orthogonal(scale * torch.randn(shape)))
        assert values.median() > 0.7 and values.max() < 1.3, shape
    weight = torch.nn.Parameter(torch.zeros(64, 48, 3, 3))
    weight.grad = torch.randn_like(weight)
    muon.Muon([weight], 0.5).step()
    assert abs(float(weight.detach().square().mean().sqrt()) / 0.5 - 0.2) < 0.05


def test_muon_has_the_weights_inside_the_network():
    """Every parameter is with one of the two; none of the few rows or of the way in and out is with Muon."""
    net = UNet(Config("scenery").arch)
    matrices, others = muon.split(net)
    ids = [id(p) for p in (*matrices, *others)]
    assert sorted(ids) == sorted(id(p) for p in net.parameters())
    names = {id(p): name for name, p in net.named_parameters()}
    assert sum(p.numel() for p in matrices) > 0.9 * sum(p.numel() for p in net.parameters())
    assert all(p.ndim >= 2 and "rgb." not in names[id(p)] for p in matrices)
    with pytest.raises(ValueError, match='optimizer is "sgd"'):
        diffusion.Settings(optimizer="sgd").optimizers(net)


def test_redrawn_latents_keep_what_the_noise_does_not_cover():
    """With the exact denoiser of normal latents: little noise changes little, much noise leaves nothing; the spread stays."""
    arch = Config("tiny").arch
    sd, unet = arch.sigma_data, UNet(arch)

    class Exact(Denoiser):
        def forward(self, z, sigma, context):
            levels = sampler.level_sigmas(self.noise, float(sigma[0]))
            return [x * sd**2 / (sd**2 + s**2) for x, s in zip(z, levels)]

    torch.manual_seed(0)
    z = [sd * torch.randn(1, level.channels, 32, 32) for level in arch.levels]
    for sigma, least, most in ((0.05, 0.98, 1.0), (20.0, -0.1, 0.1)):
        x, y = z[0].flatten(), sampler.redrawn([Exact(unet)], z, sigma, 16)[0].flatten()
        assert least < float(torch.corrcoef(torch.stack([x, y]))[0, 1]) < most
        assert abs(float(y.std()) / sd - 1) < 0.15


def whole_model(seed: int = 0) -> Model:
    """The tiny one with random weights."""
    arch, device = Config("tiny").arch, torch.device("cpu")
    torch.manual_seed(seed)
    mean, std = ([fill(level.channels) for level in arch.levels] for fill in (torch.zeros, torch.ones))
    nets = [net(arch).eval().requires_grad_(False) for net in (Autoencoder, UNet)]
    return Model(arch, nets[0], (nets[1],), Latents(arch, [], 0, mean, std, np.zeros((0, 0), np.int64)), device)


def test_a_redrawn_picture_is_the_adversarys_alone(tmp_path, monkeypatch):
    """Half of each batch goes through the U-Net; what those windows should be equal to is nothing, so their pixels leave the
    reconstruction's losses as they are."""
    pictures, device = Pictures.open(write_array(tmp_path / "pictures")), torch.device("cpu")
    task = autoencoder.Task(Config("tiny"), pictures, 0, device, whole_model())
    task.begin(0.5)
    batch = task.batch(0, 0.5)
    assert [sigma > 0 for sigma in batch.redrawn] == [False, False, True, True]
    redraw, seen = task.redraw, []
    monkeypatch.setattr(task, "redraw", lambda z, sigma: seen.append(sigma) or redraw(z, sigma))
    torch.manual_seed(0)
    _, _, before = task.loss(batch)
    assert seen == batch.redrawn[2:]
    batch.pictures[2:] = 0
    torch.manual_seed(0)
    _, _, after = task.loss(batch)
    assert before["generator"] != after["generator"] and before["l1"] == after["l1"] > 0 and before["bands"] == after["bands"]


def test_redrawing_is_refused_where_it_can_not_be(tmp_path):
    """Without a U-Net, without an adversary, beyond its bounds: the section and the setting are named."""
    pictures, device = Pictures.open(write_array(tmp_path / "pictures")), torch.device("cpu")
    head, section, rest = Config("tiny").texts[0].partition("[refine]\n")
    for switches, whole, message in (
        ("", None, r"\[autoencoder\] redrawn is for \[refine\]"),
        ("adversarial = 0.0\n", whole_model(), r"\[refine\] redrawn is for \[refine\], with adversarial above 0"),
        ("redrawn_from = 9.0\n", whole_model(), "redrawn must be from 0 to below 1"),
    ):
        text = head + section + switches + rest
        text = text if whole else text.replace("[autoencoder]\n", "[autoencoder]\nredrawn = 0.5\n")
        (tmp_path / "c.toml").write_text(text)
        with pytest.raises(ValueError, match=message):
            autoencoder.Task(Config(str(tmp_path / "c.toml")), pictures, 0, device, whole)


def test_lpips_reads_a_users_file_and_measures_difference(tmp_path, monkeypatch):
    """0 for equal pictures, above for others, with gradients; a file without VGG16 in it is refused by what it lacks."""
    blocks = tuple((numbers, 4 + k) for k, (numbers, _) in enumerate(perceptual.BLOCKS))
    monkeypatch.setattr(perceptual, "BLOCKS", blocks)
    tensors, cin = {}, 3
    for k, (numbers, width) in enumerate(blocks):
        for i in numbers:
            tensors |= {f"features.{i}.weight": torch.randn(width, cin, 3, 3), f"features.{i}.bias": torch.zeros(width)}
            cin = width
    save_file(tensors, tmp_path / "vgg.safetensors")
    lpips = perceptual.Lpips(tmp_path / "vgg.safetensors")
    a, b = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32, requires_grad=True)
    assert float(lpips(a, a)) == 0 and not list(lpips.parameters())
    lpips(b, a).backward()
    assert float(lpips(b, a).detach()) > 0 and b.grad.abs().sum() > 0
    learned = tensors | {"lin0.model.1.weight": torch.zeros(1, 4, 1, 1)}
    save_file(learned, tmp_path / "learned.safetensors")
    assert float(perceptual.Lpips(tmp_path / "learned.safetensors")(b, a).detach()) < float(lpips(b, a).detach())
    save_file({"x": torch.zeros(1)}, tmp_path / "no.safetensors")
    with pytest.raises(ValueError, match="has no features.0.weight of shape"):
        perceptual.Lpips(tmp_path / "no.safetensors")
    with pytest.raises(ValueError, match="can't be read"):
        perceptual.Lpips(tmp_path / "missing.safetensors")


def test_refinement_leaves_the_encoder(tmp_path):
    """Every weight of the encoder keeps its bits, every convolution of the decoder moves; it starts from the file's."""
    whole = whole_model()
    before = {name: x.half().float() for name, x in whole.autoencoder.state_dict().items()}
    tensors = {name: x.half() for name, x in whole.autoencoder.state_dict().items()}
    tensors |= {f"unet.{name}": x.half() for name, x in whole.unets[0].state_dict().items()}
    for i, (mean, std) in enumerate(zip(whole.latents.mean, whole.latents.std)):
        tensors |= {f"latents.{i}.mean": mean.half(), f"latents.{i}.std": std.half()}
    save_file(tensors, tmp_path / "m.safetensors", {"format": "tessera", "arch": whole.arch.to_json()})
    options = ["--config", "tiny", "--steps", "3", "--precision", "f32", "--out", str(tmp_path / "run")]
    words = ["refine", "--pictures", str(write_array(tmp_path / "pictures")), *options]
    assert cli.main([*words, "--from", str(tmp_path / "m.safetensors")]) == 0
    after, _ = read_ema(tmp_path / "run", autoencoder_identity(whole.arch), torch.device("cpu"))
    assert all(torch.equal(x, before[name]) for name, x in after.items() if name.startswith("encoder."))
    moved = [not torch.equal(x, before[name]) for name, x in after.items() if name.startswith("decoder.") and x.dim() == 4]
    assert len(moved) > 10 and all(moved)
    near = [torch.allclose(x, before[name], atol=0.02) for name, x in after.items()]
    assert all(near)
    assert cli.main(words) == 2  # nothing to refine


def test_windows_reach_the_edges():
    """Of windows of 4 in 16, no start is drawn more rarely than the others, and the ends several times as often."""
    starts = place_windows(np.random.default_rng(0), 16, 4, (1000, 10))
    count = np.bincount(starts.ravel(), minlength=13)
    assert len(count) == 13 and count[1:-1].min() > 400 and count[[0, -1]].min() > 1500
    assert (place_windows(np.random.default_rng(0), 4, 4, (2, 3)) == 0).all()


def test_latents_get_noise_in_units_of_their_channel(tmp_path, monkeypatch):
    """What the decoder sees: the means and noise of a drawn share of latent_noise, in the channel's standard deviations."""
    config = configuration(tmp_path / "c.toml", "latent_noise = 0.5\n")
    task = autoencoder.Task(Config(config), Pictures.open(write_array(tmp_path / "pictures")), 0, torch.device("cpu"))
    torch.manual_seed(1)
    scales = torch.tensor([0.1, 1.0, 10.0]).view(1, -1, 1, 1)
    means = torch.randn(4, 3, 64, 64) * scales + 5
    moments = [(means, torch.full_like(means, -30.0))]
    task.model.encoder = torch.nn.Identity()
    task.model.encoder.forward = lambda _: moments
    task.model.encoder.stem = SimpleNamespace(weight=torch.zeros(1, requires_grad=True))

    class Seen(Exception):
        pass

    def streams(z, place):
        raise Seen(z)

    monkeypatch.setattr(task.model.decoder, "streams", streams)
    batch = SimpleNamespace(pictures=torch.zeros(4, 3, 8, 8), zeroed=[0] * 4, redrawn=[0.0] * 4, seeds=torch.zeros(4, dtype=torch.int64))
    with pytest.raises(Seen) as seen:
        task.loss(batch)
    noise = ((seen.value.args[0][0] - means) / scales).std((2, 3))
    assert noise.max() < 0.55 and noise.min() < 0.45 * noise.max()  # a share of its own for every picture
    assert ((noise.std(1) / noise.mean(1)) < 0.1).all()  # the same in every channel


def test_sigmas_of_a_batch_are_spread_and_their_mean_drifts(tmp_path, monkeypatch):
    """Each of N shared sigmas lies in its own N-th of the distribution, whose mean moves by p_drift over the budget."""
    head, section, rest = Config("tiny").texts[0].partition("[diffusion]\n")
    path = tmp_path / "c.toml"
    path.write_text(head + section + "p_drift = -2.0\n" + rest)
    task = diffusion.Task(Config(str(path)), [SimpleNamespace(training=1)], None, 0, torch.device("cpu"))
    grids = zip(task.arch.levels, task.arch.grids(task.arch.width, task.arch.height))
    z = [torch.zeros(16, level.channels, *grid) for level, grid in grids]
    for progress in (0.0, 0.5, 1.0):
        task.begin(progress)
        seen = []

        def forward(scaled, c_noise, context):
            seen.append(4 * c_noise)
            return scaled

        monkeypatch.setattr(task.model, "forward", forward)
        torch.manual_seed(1)
        task.losses(task.model, diffusion.Batch(z, torch.zeros(16, 0, dtype=torch.int64), task.whole(z)), task.p_mean)
        settings = task.recipe
        shares = torch.special.ndtr((seen[0] - settings.p_mean + 2.0 * progress) / settings.p_std)
        assert (shares * 16).floor().tolist() == list(range(16))
