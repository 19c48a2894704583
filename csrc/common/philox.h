// Philox 4x32-10 (Salmon, Moraes, Dror and Shaw 2011): the package's random numbers.
//
// A block of four 32-bit words is a pure function of a 128-bit counter and a 64-bit key. Normal
// number e of a seed (two int64 numbers) comes from
//   key      the 64 bits of seed[0], low word first
//   counter  the 64 bits of e / 4, then those of seed[1], low words first
// A word x gives u = (x + 0.5) * 2^-32 in float. Words 0 and 1 give numbers 0 and 1 of the block,
// sqrt(-2 ln u0) cos(2 pi u1) and the same with sin; words 2 and 3 give numbers 2 and 3.
//
// Only constants are here, for everybody. The arithmetic is in philox.cuh for the device, in
// cpu/isa/philox_simd.h for the CPU, and in sparsevae_ext/ops/philox.py in plain torch.
#pragma once

#include <cstdint>

namespace sparsevae::philox {

constexpr int kRounds = 10;
constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
constexpr float kUnit = 2.3283064365386963e-10f;  // 2^-32

}  // namespace sparsevae::philox
