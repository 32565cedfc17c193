// Camera frames on the GPU: packing to RGB, a digest, resizing and normalising for the vision graph.
//
// NVRTC compiles this file at run time, so it includes nothing. The arithmetic is that of cpp_ext/image/pixel_values.cpp:
// integers, and tables that the host computes, so both give the same bits. x is a thread (kThreads per block), y is a
// block.

constexpr int kThreads = 128;    // frame_kernels.py launches as many
constexpr int kWeightBits = 22;  // fractional bits of a weight, as in the native core's bicubic.hpp

using Byte = unsigned char;
using Word = unsigned long long;

namespace {

__device__ inline int column() { return static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x); }

// Fixed point to 0 .. 255, with saturation.
__device__ inline int to_byte(int sum) {
    const int value = sum >> kWeightBits;
    return value < 0 ? 0 : value > 255 ? 255 : value;
}

// Weighted sums of the three channels of `count` pixels that lie `step` bytes apart, as bytes.
__device__ inline void weigh(const Byte* pixels, long long step, const int* weights, int count, int (&bytes)[3]) {
    int sums[3];
    for (int& sum : sums) sum = 1 << (kWeightBits - 1);
    for (int tap = 0; tap < count; ++tap, pixels += step)
        for (int channel = 0; channel < 3; ++channel) sums[channel] += pixels[channel] * weights[tap];
    for (int channel = 0; channel < 3; ++channel) bytes[channel] = to_byte(sums[channel]);
}

// A channel blended with white by alpha, as image_files.py does it.
__device__ inline Byte over_white(int channel, int alpha) {
    return static_cast<Byte>((channel * alpha + 255 * (255 - alpha) + 127) / 255);
}

// A permutation of the 64-bit words in which each input bit changes about half of the output bits: the finaliser of
// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
__device__ inline Word mixed(Word x) {
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ x >> 27) * 0x94D049BB133111EBull;
    return x ^ x >> 31;
}

// The term that a word adds to the digest; it depends on the word's position.
__device__ inline Word term(Word word, Word position, Word seed) {
    return mixed(word ^ mixed(seed + (position + 1) * 0x9E3779B97F4A7C15ull));
}

__device__ inline Word warp_sum(Word x) {
    for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, lanes);
    return x;
}

}  // namespace

// Sets *found if the fourth byte of any pixel is not 0: then it is alpha, else a camera's unused byte.
extern "C" __global__ void __launch_bounds__(kThreads)
    find_alpha(const Byte* source, long long pitch, int width, int* found) {
    const long long x = column(), y = blockIdx.y;
    if (x < width && source[y * pitch + x * 4 + 3]) *found = 1;
}

// Pixels of `channels` bytes in rows `pitch` bytes apart -> rgb [height, width, 3]. red, green, blue: offsets in a pixel.
// has_alpha: whether the fourth of four bytes is alpha, by which the pixel is then blended with white.
extern "C" __global__ void __launch_bounds__(kThreads)
    pack_rgb(const Byte* source, long long pitch, int width, int channels, int red, int green, int blue,
             const int* has_alpha, Byte* rgb) {
    const long long x = column(), y = blockIdx.y;
    if (x >= width) return;
    const Byte* from = source + y * pitch + x * channels;
    Byte* to = rgb + (y * width + x) * 3;
    const int alpha = channels == 4 && *has_alpha ? from[3] : 255;
    to[0] = over_white(from[red], alpha);
    to[1] = over_white(from[green], alpha);
    to[2] = over_white(from[blue], alpha);
}

// Adds 128 bits to `sums` that depend on each of `size` bytes and its position; two seeds make two sums. Sums do not
// depend on the order of the threads. `words` is aligned; bytes after its last one are not read.
extern "C" __global__ void __launch_bounds__(kThreads)
    digest(const Word* words, long long size, Word first_seed, Word second_seed, Word* sums) {
    const long long whole = size / 8, step = static_cast<long long>(gridDim.x) * kThreads;
    Word first = 0, second = 0;
    for (long long i = column(); i <= whole; i += step) {
        Word word = 0;
        if (i < whole) {
            word = words[i];
        } else {
            const Byte* bytes = reinterpret_cast<const Byte*>(words);
            for (long long at = 8 * whole; at < size; ++at) word = word << 8 | bytes[at];
        }
        first += term(word, i, first_seed);
        second += term(word, i, second_seed);
    }
    first = warp_sum(first);
    second = warp_sum(second);
    if (threadIdx.x % 32 == 0) {
        atomicAdd(&sums[0], first);
        atomicAdd(&sums[1], second);
    }
}

// rgb [height, width, 3] -> rows [height, side, 3]. Output pixel x is the sum of count[x] pixels from first[x] on, times
// their weights [side, widest].
extern "C" __global__ void __launch_bounds__(kThreads) resample_x(const Byte* rgb, int width, const int* first,
                                                                  const int* count, const int* weights, int widest,
                                                                  int side, Byte* rows) {
    const long long x = column(), y = blockIdx.y;
    if (x >= side) return;
    int bytes[3];
    weigh(rgb + (y * width + first[x]) * 3, 3, weights + x * widest, count[x], bytes);
    for (int channel = 0; channel < 3; ++channel) rows[(y * side + x) * 3 + channel] = static_cast<Byte>(bytes[channel]);
}

// rows [height, side, 3] -> values [3, side, side] by way of table [3, 256], the normalised bytes of each channel.
extern "C" __global__ void __launch_bounds__(kThreads) resample_y(const Byte* rows, const int* first, const int* count,
                                                                  const int* weights, int widest, int side,
                                                                  const float* table, float* values) {
    const long long x = column(), y = blockIdx.y;
    if (x >= side) return;
    int bytes[3];
    weigh(rows + (first[y] * static_cast<long long>(side) + x) * 3, 3LL * side, weights + y * widest, count[y], bytes);
    for (int channel = 0; channel < 3; ++channel)
        values[(channel * static_cast<long long>(side) + y) * side + x] = table[256 * channel + bytes[channel]];
}

// rows [height, width, 3] -> patch vectors by way of the table: token by token, its merge x merge patches row by row, each
// as [3, times, patch, patch], of which the frames from first_time to before end_time are written.
extern "C" __global__ void __launch_bounds__(kThreads)
    resample_patches(const Byte* rows, const int* first, const int* count, const int* weights, int widest, int /*height*/,
                     int width, const float* table, int patch, int merge, int times, int first_time, int end_time,
                     float* patches) {
    const int x = column(), y = static_cast<int>(blockIdx.y);
    if (x >= width) return;
    int bytes[3];
    weigh(rows + (first[y] * static_cast<long long>(width) + x) * 3, 3LL * width, weights + y * widest, count[y], bytes);
    const int row = y / patch, at = x / patch, area = patch * patch;
    const long long token = static_cast<long long>(row / merge) * (width / patch / merge) + at / merge;
    const long long number = (token * merge + row % merge) * merge + at % merge;
    float* to = patches + number * 3 * times * area + y % patch * patch + x % patch;
    for (int channel = 0; channel < 3; ++channel)
        for (int time = first_time; time < end_time; ++time)
            to[(channel * times + time) * area] = table[256 * channel + bytes[channel]];
}
