/* SHA-256 (FIPS 180-4). */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum { DIGEST_SIZE = 32 };

/* Of all that can be read from there; false with errno. */
bool digest_file(int fd, uint8_t digest[DIGEST_SIZE]);
