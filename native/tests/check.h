/* The whole test framework: CHECK() tells where it failed and goes on; finish() tells how many did. */
#pragma once

#include <stdio.h>
#include <stdlib.h>

static int checks, failures;

#define CHECK(condition)                                                              \
    do {                                                                              \
        checks++;                                                                     \
        if (!(condition)) {                                                           \
            failures++;                                                               \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
        }                                                                             \
    } while (0)

static inline int finish(const char *name) {
    printf("%-8s %d checks, %d failures\n", name, checks, failures);
    return failures != 0;
}
