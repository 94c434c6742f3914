"""The sounds of `SpokenDigits`: a seeded formant synthesiser in front of 700 spiking channels.

Vowel targets are approximate averages of male speakers. English: after Peterson & Barney 1952 (J. Acoust. Soc. Am.
24:175), for /e/ and /o/ Hillenbrand et al. 1995 (J. Acoust. Soc. Am. 97:3099). German: in the manner of Paetzold &
Simpson 1997 (AIPUK 32:215) and Sendlmeier & Seebode 2006. Consonant loci, noise bands and durations: typical ones, as
in Stevens 1998, Acoustic Phonetics.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elm_neuro.datasets.shd._recordings import NUM_CHANNELS

VERSION = 1  # raise it when the same arguments give other spikes

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class _Phone:
    """One sound: formants F1 to F3 in Hz, duration in ms, levels in dB; level None is silence of that source."""

    formants: tuple[float, float, float]
    ms: float
    voice: float | None = None
    noise: float | None = None
    centre: float = 0.0  # Hz, of the noise band
    width: float = 1.0  # octaves, of the noise band


PHONES: dict[str, _Phone] = {
    "i": _Phone((270, 2290, 3010), 150, 0), "I": _Phone((390, 1990, 2550), 90, 0),
    "e": _Phone((480, 2090, 2690), 110, 0),
    "E": _Phone((530, 1840, 2480), 110, 0), "a": _Phone((730, 1190, 2440), 120, 1),
    "V": _Phone((640, 1190, 2390), 120, 0),
    "O": _Phone((570, 840, 2410), 130, 0), "o": _Phone((500, 910, 2460), 130, 0),
    "u": _Phone((300, 870, 2240), 150, -1),
    "U": _Phone((440, 1020, 2240), 110, -1), "@": _Phone((500, 1450, 2450), 60, -3),
    "i:": _Phone((290, 2070, 2880), 150, 0), "E2": _Phone((510, 1720, 2490), 90, 0),
    "a2": _Phone((690, 1260, 2450), 100, 1),
    "U2": _Phone((390, 960, 2300), 90, -1), "Y": _Phone((390, 1440, 2210), 90, 0),
    "6": _Phone((550, 1300, 2400), 80, -2),
    "O2": _Phone((540, 990, 2400), 90, 0), "I2": _Phone((370, 1940, 2560), 90, 0),
    "Y2": _Phone((390, 1590, 2350), 80, -1),
    "n": _Phone((280, 1500, 2500), 85, -8), "m": _Phone((280, 1050, 2250), 80, -8),
    "l": _Phone((350, 1050, 2700), 80, -5),
    "r": _Phone((370, 1200, 1650), 80, -5), "w": _Phone((310, 700, 2300), 70, -6),
    "R": _Phone((480, 1150, 2300), 60, -10, -14, 1500, 0.8),
    "v": _Phone((290, 1150, 2300), 65, -11, -20, 4500, 1.2), "z": _Phone((290, 1550, 2550), 90, -12, -10, 5600, 0.5),
    "s": _Phone((300, 1550, 2550), 120, None, -5, 5800, 0.5), "f": _Phone((300, 1100, 2300), 110, None, -16, 4500, 1.3),
    "T": _Phone((300, 1400, 2550), 90, None, -17, 5000, 1.2), "x": _Phone((550, 1250, 2450), 110, None, -9, 1500, 0.6),
    "t-": _Phone((300, 1700, 2600), 55), "t": _Phone((300, 1700, 2600), 30, None, -6, 4300, 0.7),
    "k-": _Phone((300, 1900, 2300), 55), "k": _Phone((300, 1900, 2300), 25, None, -7, 1900, 0.5),
    "b-": _Phone((250, 950, 2200), 50, -18), "d-": _Phone((260, 1700, 2600), 45, -18),
    "d": _Phone((300, 1700, 2600), 12, -10, -10, 4000, 0.8),
}  # fmt: skip
WORDS = tuple(
    word.split()
    for word in (
        "z I r o U", "w V n", "t- t u", "T r i", "f O r", "f a I v", "s I k- k s", "s E v @ n", "e I t- t", "n a I n",
        "n U2 l", "a2 I2 n s", "t- t s v a2 I2", "d- d R a2 I2", "f i: 6", "f Y n f", "z E2 k- k s", "z i: b- @ n",
        "a2 x t- t", "n O2 Y2 n",
    )
)  # fmt: skip


@dataclass(frozen=True)
class _Speaker:
    """Voice of one speaker: pitch in Hz, formant scale against an average man, tempo, tilt in dB per octave, level in
    dB.
    """

    pitch: float
    scale: float
    tempo: float
    tilt: float
    level: float
    breath: float  # dB of noise in the voiced sounds


SPEAKERS = (
    _Speaker(112, 1.00, 1.00, -6.0, 0.0, -16), _Speaker(205, 1.16, 0.93, -7.0, -1.0, -12),
    _Speaker(96, 0.94, 1.12, -5.0, 2.0, -18),
    _Speaker(131, 1.03, 0.88, -7.5, -2.0, -14), _Speaker(188, 1.12, 1.06, -6.5, 0.5, -13),
    _Speaker(121, 0.97, 0.94, -5.5, -0.5, -17),
    _Speaker(222, 1.20, 1.05, -6.0, -2.5, -11), _Speaker(104, 0.98, 0.96, -8.0, 1.0, -15),
    _Speaker(176, 1.13, 1.15, -5.0, 1.5, -15),
    _Speaker(214, 1.17, 0.98, -7.5, -1.5, -10), _Speaker(193, 1.09, 0.90, -5.5, 0.0, -14),
    _Speaker(140, 1.05, 1.08, -6.5, 1.0, -16),
)  # fmt: skip

# Strength of what makes speech hard; set once so that the two reference classifiers score as on recorded digits.
ACCENT = 0.20  # of a speaker's formants and noise bands, per phoneme, relative
SLIP = 0.05  # of one utterance's formants and noise bands, per phoneme, relative
TEMPO = 0.16  # of one utterance's tempo and of each phoneme's duration, relative
LOUDNESS = 2.0  # of each phoneme's level, by speaker and by utterance, dB
COLOUR = (5.0, 1.0)  # of a speaker's and of one utterance's frequency response, dB
FLUTTER = 9.0  # of the level from moment to moment and band to band, dB
MOMENT, BANDS = 14, 13  # frames from one such moment to the next, bands over all channels
ROOM = (-50.0, -28.0)  # level of the background noise against the threshold, dB, drawn evenly
FRICTION = -4.0  # of all noise bands, dB

LOWEST, HIGHEST = 80.0, 10_000.0  # Hz, channel 699 and channel 0: as in SHD low channels are high frequencies
OCTAVES = np.linspace(math.log2(HIGHEST), math.log2(LOWEST), NUM_CHANNELS, dtype=np.float32)
FRAME = 4  # ms, step of the spectrum; spikes are drawn every ms
PEAK_RATE, SPONTANEOUS = 0.16, 0.001  # spikes per ms and channel
THRESHOLD = 1.0  # dB, where a channel fires at half its peak rate


def utter(label: int, speaker: int, rng: np.random.Generator) -> tuple[NDArray[np.int32], NDArray[np.uint16]]:
    """Times in microseconds, ascending, and channels of word `label` (0 to 19) spoken by `speaker` (0 to 11)."""
    voice = SPEAKERS[speaker]
    tracks = _tracks(WORDS[label], speaker, voice, rng)
    power = _power(tracks, voice, _colour(_habits(speaker, 2), COLOUR[0]) + _colour(rng, COLOUR[1]), rng)
    rate = _cochlea(power, tracks, rng)
    return _spikes(rate, rng)


@dataclass(frozen=True)
class _Tracks:
    """One utterance in frames of 4 ms: log2 of the formants (4, time) and of the noise centre, linear amplitudes,
    pitch in Hz.
    """

    formants: Array
    voice: Array
    noise: Array
    centre: Array
    width: Array
    pitch: Array


def _habits(speaker: int, what: int) -> np.random.Generator:
    """The same numbers for a speaker every time: how he or she differs from the average in formants (0), levels (1),
    colour (2).
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((VERSION, speaker, what), spawn_key=(0,))))


def _tracks(word: list[str], speaker: int, voice: _Speaker, rng: np.random.Generator) -> _Tracks:
    accents = dict(zip(PHONES, _habits(speaker, 0).normal(0.0, ACCENT, (len(PHONES), 5)), strict=True))
    habits = dict(zip(PHONES, _habits(speaker, 1).normal(0.0, LOUDNESS, len(PHONES)), strict=True))
    stretch = voice.tempo * math.exp(rng.normal(0.0, TEMPO))
    rows: list[list[float]] = []
    counts: list[int] = []
    silence = (rng.uniform(25.0, 110.0), rng.uniform(120.0, 300.0))  # ms before and after the word
    for name in ["", *word, ""]:
        if name == "":
            phone, accent, ms = _Phone((500, 1500, 2500), 0), np.zeros(5), silence[len(rows) > 0]
        else:
            phone, accent = PHONES[name], accents[name]
            ms = phone.ms * stretch * math.exp(rng.normal(0.0, TEMPO))
        counts.append(max(round(ms / FRAME), 2))
        shift = np.exp(accent + rng.normal(0.0, SLIP, 5))
        hertz = np.array([*phone.formants, 3500.0]) * (voice.scale * shift[:4])
        louder = habits.get(name, 0.0) + rng.normal(0.0, LOUDNESS)
        levels = [0.0 if level is None else 10.0 ** ((level + louder) / 20.0) for level in (phone.voice, phone.noise)]
        centre = (phone.centre or 3000.0) * (0.5 + 0.5 * voice.scale) * shift[4]
        rows.append([*np.log2(hertz), *levels, math.log2(centre), phone.width])
    rows[0][:4], rows[-1][:4] = rows[1][:4], rows[-2][:4]
    steps = np.repeat(np.array(rows).T, counts, axis=1)
    total = steps.shape[1]
    glide, edge = (_smooth(steps, frames) for frames in (13, 5))
    contour = (
        rng.normal(1.0, 0.06) * np.linspace(1.08, 0.88, total) * (1.0 + 0.02 * np.cumsum(rng.normal(0.0, 0.15, total)))
    )
    return _Tracks(glide[:4], edge[4], edge[5], edge[6], edge[7], voice.pitch * contour)


def _smooth(steps: Array, frames: int) -> Array:
    """Weighted moving average over `frames` (odd) along time with a raised cosine."""
    window = np.hanning(frames + 2)[1:-1]
    padded = np.pad(steps, ((0, 0), (frames // 2, frames // 2)), mode="edge")
    smooth: Array = np.lib.stride_tricks.sliding_window_view(padded, frames, axis=1) @ (window / window.sum())
    return smooth


def _colour(rng: np.random.Generator, strength: float) -> Array:
    """A smooth random frequency response of standard deviation `strength` in dB, (num_channels,)."""
    knots = rng.normal(0.0, strength, 9)
    return np.interp(np.arange(NUM_CHANNELS), np.linspace(0, NUM_CHANNELS - 1, 9), knots)


def _flutter(time: int, rng: np.random.Generator) -> Array:
    """Gain that wanders over time and channels, (time, num_channels), linear power, float32."""
    knots = rng.normal(0.0, FLUTTER, (time // MOMENT + 2, BANDS)) + rng.normal(0.0, 2.0)
    at = np.arange(time) / MOMENT
    row = at.astype(np.int64)
    part = (at - row)[:, None]
    coarse = knots[row] * (1.0 - part) + knots[row + 1] * part  # (time, BANDS)
    place = np.linspace(0, BANDS - 1, NUM_CHANNELS)
    hats = np.maximum(
        1.0 - np.abs(place - np.arange(BANDS)[:, None]), 0.0
    )  # (BANDS, num_channels), linear interpolation
    gain: Array = np.exp((coarse @ hats * (math.log(10.0) / 10.0)).astype(np.float32))
    return gain


def _power(tracks: _Tracks, voice: _Speaker, colour: Array, rng: np.random.Generator) -> Array:
    """Power in each channel relative to its threshold, (time, num_channels), float32."""
    time = tracks.voice.size
    above = OCTAVES - 9.0  # octaves above 512 Hz
    resonances = np.zeros((time, NUM_CHANNELS), dtype=np.float32)
    for k, sharpness in enumerate((5.5, 7.0, 7.0, 6.0)):
        distance = (OCTAVES - tracks.formants[k].astype(np.float32)[:, None]) * np.float32(sharpness)
        distance *= distance
        distance += 1.0
        resonances += 1.0 / (distance * distance)
    tilt = 10.0 ** ((np.where(above > 0, voice.tilt * above, 0.0) + 6.0) / 10.0)
    hum = 4.0 * 10.0 ** (-1.2 * np.maximum(OCTAVES - 8.2, 0.0) ** 2)  # the voice itself, below about 300 Hz
    pitch = tracks.pitch.astype(np.float32)[:, None]
    hertz = np.exp2(OCTAVES)
    resolved = np.exp(
        -(((hertz * 0.16 + 30.0) / pitch) ** 2)
    )  # single harmonics stand out where the ear's band is narrower than the pitch
    comb = 1.0 + resolved * np.cos((2 * math.pi) * hertz / pitch)
    low = OCTAVES > np.log2(pitch) - 0.5  # nothing below the first harmonic
    voiced = (resonances * (tilt * 0.7) + hum * 0.03) * comb * low
    breath = resonances * (tilt * 10.0 ** (voice.breath / 10.0))
    distance = (OCTAVES - tracks.centre[:, None].astype(np.float32)) / tracks.width[:, None].astype(np.float32)
    noise = np.exp2(-distance * distance)
    strength = tracks.voice[:, None] ** 2
    power = (voiced + breath) * strength + noise * (3.0 * 10.0 ** (FRICTION / 10.0) * tracks.noise[:, None] ** 2)
    gain = 10.0 ** ((voice.level + colour - THRESHOLD) / 10.0)
    room = 10.0 ** ((rng.uniform(*ROOM) + _colour(rng, COLOUR[1])) / 10.0)
    total: Array = (power * gain + room).astype(np.float32)
    return total


def _cochlea(power: Array, tracks: _Tracks, rng: np.random.Generator) -> Array:
    """Probability of a spike per ms and channel, (time in ms, num_channels), float32, locked to the pitch and later at
    low frequencies.
    """
    drive = np.sqrt(power * _flutter(len(power), rng))
    drive /= 1.0 + drive
    onset = np.maximum(drive[1:] - drive[:-1], 0.0)
    drive[1:] += 0.8 * onset  # a fresh channel answers more strongly
    phase = 2 * math.pi * np.cumsum(np.repeat(tracks.pitch, FRAME)) / 1000.0
    voiced = np.repeat(np.minimum(tracks.voice * 2.0, 0.85), FRAME).astype(np.float32)
    delay = (
        np.exp2(-(OCTAVES - 8.0)) * 2.5 * (2 * math.pi / 1000.0) * tracks.pitch.mean()
    )  # travelling wave, about 2.5 ms at 256 Hz
    pulses = (np.cos(phase) * voiced).astype(np.float32)[:, None] * np.cos(delay).astype(np.float32)
    pulses += (np.sin(phase) * voiced).astype(np.float32)[:, None] * np.sin(delay).astype(np.float32)
    pulses += 1.0
    rate = np.repeat(drive * np.float32(PEAK_RATE), FRAME, axis=0)
    rate *= pulses
    rate += np.float32(SPONTANEOUS)
    return rate


def _spikes(rate: Array, rng: np.random.Generator) -> tuple[NDArray[np.int32], NDArray[np.uint16]]:
    fired = rng.random(rate.shape, dtype=np.float32) < rate
    fired[1:] &= ~fired[:-1]  # refractory
    step, unit = np.divmod(np.flatnonzero(fired), NUM_CHANNELS)
    seconds = ((step + rng.random(step.size)) / 1000.0).astype(np.float16)  # the grid of SHD's files
    times = (seconds.astype(np.float64) * 1e6).astype(np.int32)
    order = np.argsort(times, kind="stable")
    return times[order], unit[order].astype(np.uint16)
