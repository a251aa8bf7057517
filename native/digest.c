/* SHA-256 (FIPS 180-4), for files that are compared across two sandboxes. */
#include "digest.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

enum { BLOCK = 64, WORDS = 8, ROUNDS = 64, PIECE = 64 << 10, LENGTH_AT = 56 };

static const uint32_t begins[WORDS] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

static const uint32_t keys[ROUNDS] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
    0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
    0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
    0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
    0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
    0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t turned(uint32_t word, unsigned bits) {
    return word >> bits | word << (32 - bits);
}

static void take_block(uint32_t state[WORDS], const uint8_t *block) {
    uint32_t w[ROUNDS], s[WORDS];
    for (int i = 0; i < ROUNDS; i++) {
        if (i < 16) {
            w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 | (uint32_t)block[4 * i + 2] << 8 | block[4 * i + 3];
            continue;
        }
        uint32_t before = w[i - 15], late = w[i - 2];
        w[i] = w[i - 16] + w[i - 7] + (turned(before, 7) ^ turned(before, 18) ^ before >> 3) + (turned(late, 17) ^ turned(late, 19) ^ late >> 10);
    }
    memcpy(s, state, sizeof s);
    for (int i = 0; i < ROUNDS; i++) {
        uint32_t one = s[7] + (turned(s[4], 6) ^ turned(s[4], 11) ^ turned(s[4], 25)) + ((s[4] & s[5]) ^ (~s[4] & s[6])) + keys[i] + w[i];
        uint32_t two = (turned(s[0], 2) ^ turned(s[0], 13) ^ turned(s[0], 22)) + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        memmove(s + 1, s, (WORDS - 1) * sizeof *s);
        s[4] += one;
        s[0] = one + two;
    }
    for (int i = 0; i < WORDS; i++)
        state[i] += s[i];
}

static void put_big(uint8_t *to, uint64_t value, int size) {
    for (int i = 0; i < size; i++)
        to[i] = (uint8_t)(value >> 8 * (size - 1 - i));
}

bool digest_file(int fd, uint8_t digest[DIGEST_SIZE]) {
    static uint8_t piece[PIECE + 2 * BLOCK];
    uint32_t state[WORDS];
    uint64_t size = 0;
    size_t held = 0;
    ssize_t n;
    memcpy(state, begins, sizeof state);
    while ((n = read(fd, piece + held, PIECE - held)) > 0 || (n < 0 && errno == EINTR)) {
        size_t at = 0;
        held += n > 0 ? (size_t)n : 0;
        size += n > 0 ? (uint64_t)n : 0;
        for (; held - at >= BLOCK; at += BLOCK)
            take_block(state, piece + at);
        memmove(piece, piece + at, held - at);
        held -= at;
    }
    piece[held++] = 0x80;
    size_t all = held <= LENGTH_AT ? BLOCK : 2 * BLOCK;
    memset(piece + held, 0, all - held);
    put_big(piece + all - 8, size * 8, 8);
    for (size_t at = 0; at < all; at += BLOCK)
        take_block(state, piece + at);
    for (int i = 0; i < WORDS; i++)
        put_big(digest + 4 * i, state[i], 4);
    return n == 0;
}
