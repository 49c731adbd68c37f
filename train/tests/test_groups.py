"""Promises of models of version 2: groups of levels, context, guidance, place-keyed noise."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from tessera_train.data.labels import drawn, encoded
from tessera_train.nets import sampler
from tessera_train.nets.arch import Arch, Label, unet_identity
from tessera_train.nets.decoder import Decoder, Place
from tessera_train.nets.place_noise import MASK, place_noise
from tessera_train.nets.precond import Denoiser
from tessera_train.nets.unet import Context, UNet, Window
from tessera_train.training.config import Config
from tessera_train.training.weighting import Weighting

LABELS = (Label("time", ("day", "dusk")), Label("water", ("none", "lake", "sea")))


def filled(net: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """`net` in f64 with normal weights, none of them zero."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape) / max(1, math.sqrt(p.numel() / p.shape[0])))
    return net.double().eval().requires_grad_(False)


@pytest.fixture
def arch() -> Arch:
    """The tiny model of version 2 with two labels."""
    return dataclasses.replace(Config("tiny-2").arch, labels=LABELS)


def levels(arch: Arch, count: int = 1, seed: int = 1) -> list[torch.Tensor]:
    """Normal latents of the default size."""
    torch.manual_seed(seed)
    grids = arch.grids(arch.width, arch.height)
    return [torch.randn(count, level.channels, *grid, dtype=torch.float64) for level, grid in zip(arch.levels, grids)]


def test_document_of_both_versions_round_trips(arch):
    """Version 1 has the fields it always had, and no others."""
    assert Arch.from_json(arch.to_json()) == arch
    first = Config("tiny").arch
    assert Arch.from_json(first.to_json()) == first
    text = first.to_json()
    assert '"unet"' in text and not any(word in text for word in ("groups", "sizes", "labels", "rgb", "coordinates", '"norm"'))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {"groups": a.groups[::-1]}, "groups cover levels"),
        (lambda a: {"groups": a.groups[:1]}, "groups cover levels"),
        (lambda a: {"version": 1}, "needs version 2"),
        (lambda a: {"labels": (*LABELS, LABELS[0])}, "labels have equal names"),
        (lambda a: {"labels": (Label("x", ()),)}, "labels x"),
        (lambda a: {"decoder": dataclasses.replace(a.decoder, rgb="cubic")}, "decoder.rgb is 'cubic'"),
        (lambda a: {"sizes": ()}, "sizes is empty"),
        (lambda a: {"sizes": ((256, 100),)}, "height is 100"),
        (
            lambda a: {"groups": (a.groups[0], dataclasses.replace(a.groups[1], unet=dataclasses.replace(a.groups[1].unet, unshuffle=8)))},
            "stages end at factor 128",
        ),
    ],
)
def test_document_names_the_field_that_does_not_fit(arch, change, message):
    """A ValueError for every way in which the parts can contradict each other."""
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(arch, **change(arch))


def test_unet_depends_on_condition_labels_and_coordinates(arch):
    """Each part of the context changes the prediction; labels that are not given are the table's first row."""
    z = levels(arch)
    unet = filled(UNet(arch, 1))
    c_noise = torch.tensor([0.1], dtype=torch.float64)
    labels = torch.tensor([[1, 0]])
    base = Context(tuple(z[1:]), labels)
    out = unet(z[:1], c_noise, base)[0]
    others = [
        Context((z[1] + 0.1, z[2]), labels),
        Context((z[1], z[2] + 0.1), labels),
        Context(tuple(z[1:]), torch.tensor([[1, 3]])),
        Context(tuple(z[1:]), labels, Window(0, 0, (16, 16))),
    ]
    for context in others:
        assert (unet(z[:1], c_noise, context)[0] - out).abs().max() > 1e-3
    none = unet(z[:1], c_noise, Context(tuple(z[1:])))[0]
    assert torch.equal(none, unet(z[:1], c_noise, Context(tuple(z[1:]), torch.zeros(1, 2, dtype=torch.int64)))[0])


def test_detail_has_a_finite_receptive_field(arch):
    """A window of the latents, with its condition and its place, gives the numbers of the whole away from cut edges."""
    arch = dataclasses.replace(arch, sizes=((2048, 512),))
    z = levels(arch)
    unet = filled(UNet(arch, 1))
    c_noise = torch.tensor([0.3], dtype=torch.float64)
    whole = unet(z[:1], c_noise, Context(tuple(z[1:])))[0]
    left, first = 32, 16  # columns of the first grid, which is at factor 16
    cut = [x[..., left * first // lv.factor :] if lv.factor else x for x, lv in zip(z, arch.levels)]
    part = unet(cut[:1], c_noise, Context(tuple(cut[1:]), None, Window(0, left, (32, 128))))[0]
    reach = 2 * 28  # columns of the finest latent
    assert torch.allclose(part[..., reach:], whole[..., 2 * left + reach :], atol=1e-12)
    assert not torch.allclose(part[..., :2], whole[..., 2 * left : 2 * left + 2], atol=1e-3)


def test_groups_are_sampled_in_order_and_keep_what_is_settled(arch):
    """The layout does not depend on the detail, and comes out of the whole sampler with the bits it has alone."""
    denoisers = [Denoiser(filled(UNet(arch, g), g).float()) for g in range(2)]
    labels = torch.tensor([[1, 2], [2, 0]])
    torch.manual_seed(3)
    layout = sampler.sample_group(denoisers[0], arch, 0, [], labels, 2, 4, 2.0, arch.sizes[0])
    torch.manual_seed(3)
    z = sampler.latents(denoisers, arch, 2, [4, 3], labels, 2.0)
    assert len(z) == 3 and all(torch.equal(a, b) for a, b in zip(z[1:], layout))
    assert [tuple(x.shape[1:]) for x in z] == [(4, 16, 32), (8, 4, 8), (16, 1, 1)]


def test_guidance_extrapolates_within_its_interval(arch):
    """D_none + scale (D_labels - D_none) where sigma is in the interval, D_labels elsewhere."""
    plain = Denoiser(filled(UNet(arch, 0)))
    z, labels, sigma = levels(arch, 2)[1:], torch.tensor([[1, 2], [2, 3]]), torch.full((2,), 1.5, dtype=torch.float64)
    with_labels, without = plain(z, sigma, Context((), labels)), plain(z, sigma, Context())
    for interval, scale in (((1.0, 2.0), 3.0), ((1.5, 2.0), 1.0), ((0.0, 1.0), 1.0), (None, 3.0)):
        first = dataclasses.replace(arch.groups[0], guidance=interval)
        its = Arch.from_json(dataclasses.replace(arch, groups=(first, *arch.groups[1:])).to_json())
        assert unet_identity(its, 0) == unet_identity(arch, 0)
        denoiser = Denoiser(filled(UNet(its, 0)))
        found = sampler.guided(denoiser, Context((), labels), 3.0)(z, sigma)
        for a, b, c in zip(found, with_labels, without):
            assert torch.allclose(a, c + scale * (b - c), atol=1e-9)


def test_place_noise_is_keyed_by_place_and_near_normal():
    """A window has the numbers of the whole; moments are those of a standard normal; neighbours, stages and seeds differ."""
    seeds = torch.tensor([7, 2**62 + 7])
    whole = place_noise(seeds, 1, 0, 0, 256, 256)
    assert torch.equal(whole[..., 30:40, 5:50], place_noise(seeds, 1, 30, 5, 10, 45))
    for x in whole:
        assert abs(float(x.mean())) < 0.015 and abs(float(x.var()) - 1) < 0.02 and abs(float((x**4).mean()) - 2.94) < 0.1
        assert abs(float((x[..., 1:] * x[..., :-1]).mean())) < 0.015 and abs(float((x[..., 1:, :] * x[..., :-1, :]).mean())) < 0.015
    assert not torch.equal(whole[0], whole[1]) and not torch.equal(whole, place_noise(seeds, 2, 0, 0, 256, 256))


def scalar_noise(seed: int, stage: int, y: int, x: int) -> int:
    """The same number by Python's integers, before its scale."""

    def mix(v: int) -> int:
        v = ((v ^ (v >> 16)) * 0x7FEB352D) & MASK
        v = ((v ^ (v >> 15)) * 0x846CA68B) & MASK
        return v ^ (v >> 16)

    key = mix(mix(mix(seed & MASK) ^ (seed >> 32)) ^ stage)
    return mix(mix(key ^ y) ^ x).bit_count() - 16


def test_place_noise_is_exact_integer_arithmetic():
    """At random seeds, stages and places up to the ends of their ranges."""
    rng = np.random.default_rng(5)
    for _ in range(50):
        seed, stage = int(rng.integers(0, 2**63)), int(rng.integers(0, 12))
        y, x = (int(rng.integers(0, 2**32 - 1)) for _ in range(2))
        found = place_noise(torch.tensor([seed]), stage, y, x, 1, 1)
        assert round(float(found) * math.sqrt(8)) == scalar_noise(seed, stage, y, x)


def test_decoder_window_has_the_noise_of_its_place(arch):
    """A window of the local stage equals the whole away from cut edges, with noise in every stage; another seed differs."""
    decoder = filled(Decoder(arch))
    z, place = levels(arch), Place(torch.tensor([99]))
    h, r = decoder.global_stage(z, place)
    whole = decoder.local_stage(h, r, place)
    part = decoder.local_stage(h[..., 4:, 8:], r[..., 4:, 8:], Place(place.seeds, 4, 8))
    halo = 8 * 4
    assert torch.allclose(part[..., halo:, halo:], whole[..., 8 * 4 + halo :, 8 * 8 + halo :], atol=1e-12)
    assert (decoder(z, Place(torch.tensor([100]))) - whole).abs().max() > 1e-3


def test_equalised_losses_have_one_size_over_noise_levels():
    """After some batches the weighted loss is near 1 at every sigma, whatever its own size there."""
    torch.manual_seed(0)
    weighting = Weighting(2, torch.device("cpu"))
    for _ in range(600):
        sigma = (torch.randn(64) * 1.5).exp()
        losses = torch.stack([sigma, 0.1 / sigma]) * (0.5 + torch.rand(64))
        weighted = weighting(losses, sigma)
    middle = (sigma.log().abs() < 1.5).nonzero()[:, 0]
    assert float(weighted[:, middle].mean(1).sub(1).abs().max()) < 0.25


def test_labels_not_asked_for_follow_the_training_pictures():
    """Given labels stay; the others come from pictures that have them; the schema's names and values are checked."""
    rows = encoded(LABELS, [{"time": "day", "water": "none"}, {"time": "dusk", "water": "lake"}, {"time": "dusk", "water": "sea"}, {}])
    assert rows.tolist() == [[1, 1], [2, 2], [2, 3], [0, 0]]
    rng = np.random.default_rng(0)
    found = {tuple(drawn(rows, np.array([2, 0]), rng)) for _ in range(50)}
    assert found == {(2, 2), (2, 3)}
    assert {tuple(drawn(rows, np.array([0, 0]), rng)) for _ in range(200)} == {(1, 1), (2, 2), (2, 3), (0, 0)}
    assert drawn(rows, np.array([1, 3]), rng).tolist() == [1, 3]
    for bad, message in (({"hour": "day"}, "must be one of time, water"), ({"time": "noon"}, "must be one of day, dusk")):
        with pytest.raises(ValueError, match=message):
            encoded(LABELS, [bad])
