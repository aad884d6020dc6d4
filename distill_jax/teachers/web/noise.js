// The noise of student.sample in JavaScript: JAX's generator threefry2x32 and its normal numbers.
// Salmon et al. (2011, Parallel random numbers: as easy as 1, 2, 3); jax/_src/prng.py and random.py.
"use strict";

const Noise = (() => {
  const ROTATIONS = [[13, 15, 26, 6], [17, 29, 16, 24]];
  // Giles (2010, Approximating the erfinv function), single precision: w < 5, and the tails.
  const CENTRE = [2.81022636e-8, 3.43273939e-7, -3.5233877e-6, -4.39150654e-6, 0.00021858087,
    -0.00125372503, -0.00417768164, 0.246640727, 1.50140941];
  const TAILS = [-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773,
    -0.0076224613, 0.00943887047, 1.00167406, 2.83297682];
  const LOW = -1 + 2 ** -24;

  // Returns the two words of a block for a key of two words and a counter of two words.
  function threefry([k0, k1], high, low) {
    const keys = [k0, k1, k0 ^ k1 ^ 0x1bd11bda];
    let a = (high + k0) | 0, b = (low + k1) | 0;
    for (let round = 0; round < 5; round++) {
      for (const turn of ROTATIONS[round % 2]) {
        a = (a + b) | 0;
        b = ((b << turn) | (b >>> (32 - turn))) ^ a;
      }
      a = (a + keys[(round + 1) % 3]) | 0;
      b = (b + keys[(round + 2) % 3] + round + 1) | 0;
    }
    return [a, b];
  }

  const foldIn = (key, number) => threefry(key, 0, number);

  function erfInverse(u) {
    let w = -Math.log1p(-u * u);
    const terms = w < 5 ? CENTRE : TAILS;
    w = w < 5 ? w - 2.5 : Math.sqrt(w) - 3;
    return terms.reduce((sum, term) => sum * w + term) * u;
  }

  // Returns standard normal numbers of a key, as jax.random.normal does.
  function normal(key, size) {
    return Float32Array.from({ length: size }, (_, i) => {
      const [a, b] = threefry(key, 0, i);
      const u = Math.max(LOW, Math.fround(((a ^ b) >>> 9) * 2 ** -22 + LOW));
      return Math.SQRT2 * erfInverse(u);
    });
  }

  // Returns the noise of images 0 .. num - 1 of a seed, (num, calls, size): that from which they
  // start, and what a sampler adds before call k, of the sampler's step k - 1 + later.
  function of(seed, num, size, calls = 1, later = 0) {
    const [start, added] = [0, 1].map((half) => threefry([0, seed], 0, half));
    const noise = new Float32Array(num * calls * size);
    for (let i = 0; i < num; i++) {
      for (let k = 0; k < calls; k++) {
        const key = k ? foldIn(foldIn(added, i), k - 1 + later) : foldIn(start, i);
        noise.set(normal(key, size), (i * calls + k) * size);
      }
    }
    return noise;
  }

  return { of };
})();
