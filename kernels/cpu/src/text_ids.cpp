// Item ids that are text to their numbers, many in one call: mfalcon/item_ids.py is the definition.
// A number that is written plainly is that number; anything else is the first 8 bytes of its BLAKE2b (RFC 7693).

#include <bit>
#include <cstdint>
#include <cstring>

namespace {

static_assert(std::endian::native == std::endian::little, "words are read as they lie");

constexpr int64_t kMaxBytes = 256, kBlock = 128, kWords = kBlock / 8, kDigest = 8;

constexpr uint64_t kStart[8] = {
    0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
    0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179,
};

constexpr uint8_t kOrder[10][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
};

using Four = uint64_t __attribute__((vector_size(32)));  // of four texts at a time

template <class T>
[[gnu::always_inline]] inline T rotated(T x, int right) {
    return x >> right | x << (64 - right);
}

template <class T>
[[gnu::always_inline]] inline void mix(T& a, T& b, T& c, T& d, T x, T y) {
    a += b + x, d = rotated(d ^ a, 32), c += d, b = rotated(b ^ c, 24);
    a += b + y, d = rotated(d ^ a, 16), c += d, b = rotated(b ^ c, 63);
}

// h: the state. m: [16] words of a block, zeros behind the text. read: bytes of the text up to the end of this block.
template <class T>
[[gnu::always_inline]] inline void compress(T* h, const T* m, T read, bool is_last) {
    T v[16];
    for (int i = 0; i < 8; ++i) v[i] = h[i], v[i + 8] = T{} + kStart[i];
    v[12] ^= read;
    if (is_last) v[14] = ~v[14];
#pragma GCC unroll 12
    for (int round = 0; round < 12; ++round) {
        const uint8_t* s = kOrder[round % 10];
        mix(v[0], v[4], v[8], v[12], m[s[0]], m[s[1]]);
        mix(v[1], v[5], v[9], v[13], m[s[2]], m[s[3]]);
        mix(v[2], v[6], v[10], v[14], m[s[4]], m[s[5]]);
        mix(v[3], v[7], v[11], v[15], m[s[6]], m[s[7]]);
        mix(v[0], v[5], v[10], v[15], m[s[8]], m[s[9]]);
        mix(v[1], v[6], v[11], v[12], m[s[10]], m[s[11]]);
        mix(v[2], v[7], v[8], v[13], m[s[12]], m[s[13]]);
        mix(v[3], v[4], v[9], v[14], m[s[14]], m[s[15]]);
    }
    for (int i = 0; i < 8; ++i) h[i] ^= v[i] ^ v[i + 8];
}

template <class T>
[[gnu::always_inline]] inline void begin(T* h) {
    for (int i = 0; i < 8; ++i) h[i] = T{} + kStart[i];
    h[0] ^= T{} + (0x01010000 ^ kDigest);  // no key, one leaf
}

struct Text {
    const uint8_t* utf8;
    int64_t size;
    uint64_t* out;
};

// A text of any length.
void hash(const Text& text) {
    uint64_t h[8], m[kWords];
    begin(h);
    int64_t at = 0;
    for (; text.size - at > kBlock; at += kBlock) {
        std::memcpy(m, text.utf8 + at, kBlock);
        compress<uint64_t>(h, m, at + kBlock, false);
    }
    std::memset(m, 0, sizeof m);
    std::memcpy(m, text.utf8 + at, text.size - at);
    compress<uint64_t>(h, m, text.size, true);
    *text.out = h[0];
}

// Four texts of a block at most.
#if defined(__x86_64__)
[[gnu::target("avx2")]]
#endif
void hash_four(const Text* texts) {
    uint64_t words[4][kWords] = {};
    for (int i = 0; i < 4; ++i) std::memcpy(words[i], texts[i].utf8, texts[i].size);
    Four h[8], m[kWords], sizes;
    for (int i = 0; i < kWords; ++i) m[i] = Four{words[0][i], words[1][i], words[2][i], words[3][i]};
    for (int i = 0; i < 4; ++i) sizes[i] = texts[i].size;
    begin(h);
    compress<Four>(h, m, sizes, true);
    for (int i = 0; i < 4; ++i) *texts[i].out = h[0][i];
}

bool has_four() {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2");
#else
    return true;
#endif
}

// Whether a text is a number of 64 bits as a program writes it: "7" and "-12", not "007", "+7" nor "-0".
bool is_number(const uint8_t* text, int64_t size, uint64_t& number) {
    const bool is_negative = text[0] == '-';
    const int64_t begin = is_negative, digits = size - begin;
    if (digits < 1 || digits > 19 || (text[begin] == '0' && size > 1)) return false;
    uint64_t value = 0;
    for (int64_t i = begin; i < size; ++i) {
        if (text[i] < '0' || text[i] > '9') return false;
        value = 10 * value + (text[i] - '0');
    }
    if (value > (uint64_t{1} << 63) - !is_negative) return false;
    number = is_negative ? -value : value;
    return true;
}

// Whether one of eight bytes of ASCII is below 0x20, or 0x7f; true as well if one may be no ASCII.
inline bool is_odd(uint64_t bytes) {
    constexpr uint64_t kEach = 0x0101010101010101, kHigh = 0x80 * kEach;
    return (((bytes - 0x20 * kEach) | (bytes + kEach) | bytes) & kHigh) != 0;
}

// Whether there is a character of 0 to 0x1f or of 0x7f to 0x9f in UTF-8.
bool has_control(const uint8_t* text, int64_t size) {
    bool odd = false;
    for (int64_t at = 0; at < size; at += 8) {
        uint64_t bytes = 0x6161616161616161;
        std::memcpy(&bytes, text + at, size - at < 8 ? size - at : 8);
        odd |= is_odd(bytes);
    }
    bool found = false;
    for (int64_t at = 0; odd && at < size; ++at) {
        found |= text[at] < 0x20 || text[at] == 0x7f || (text[at] == 0xc2 && at + 1 < size && text[at + 1] < 0xa0);
    }
    return found;
}

}  // namespace

// utf8: [num_bytes] the texts, a zero between each two. out: [num_texts]. Returns how many ids were well, from the
// first on; num_texts only if there are just so many, and each is 1 to 256 bytes without control characters.
extern "C" int64_t mf_text_ids(const uint8_t* utf8, int64_t num_bytes, int64_t num_texts, uint64_t* out) {
    const bool by_four = has_four();
    Text waiting[4];
    int64_t at = 0, num_waiting = 0;
    for (int64_t which = 0; which < num_texts; ++which) {
        if (at > num_bytes) return which;
        const void* zero = std::memchr(utf8 + at, 0, num_bytes - at);
        const int64_t end = zero ? static_cast<const uint8_t*>(zero) - utf8 : num_bytes;
        const Text text{utf8 + at, end - at, out + which};
        if (text.size < 1 || text.size > kMaxBytes || has_control(text.utf8, text.size)) return which;
        at = end + 1;
        if (is_number(text.utf8, text.size, *text.out)) continue;
        if (!by_four || text.size > kBlock) {
            hash(text);
        } else if (waiting[num_waiting++] = text; num_waiting == 4) {
            hash_four(waiting);
            num_waiting = 0;
        }
    }
    while (num_waiting) hash(waiting[--num_waiting]);
    return at == num_bytes + 1 ? num_texts : num_texts - 1;
}
