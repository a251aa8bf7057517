/* scan() finds what the C library's sscanf() finds. */
#include "check.h"
#include "scan.h"

#include <stdio.h>
#include <string.h>

struct found {
    int count, number, end;
    unsigned hex;
    long size;
    unsigned long long large;
    char word[16], letter;
};

#define BOTH(text, format, ...)                                                                                                \
    do {                                                                                                                       \
        struct found a, b;                                                                                                     \
        memset(&a, 0, sizeof a);                                                                                               \
        memset(&b, 0, sizeof b);                                                                                               \
        struct found *f = &a;                                                                                                  \
        a.count = sscanf(text, format, __VA_ARGS__);                                                                           \
        f = &b;                                                                                                                \
        b.count = scan(text, format, __VA_ARGS__);                                                                             \
        a.count = a.count < 0 ? 0 : a.count;                                                                                   \
        CHECK(memcmp(&a, &b, sizeof a) == 0);                                                                                  \
    } while (0)

int main(void) {
    BOTH("exited -7 12 18446744073709551615", "%15s %d %llu %llu", f->word, &f->number, &f->large, &f->large);
    BOTH(") S 41 1 2 3 99", ") %c %ld %*s %*s %*d %llu", &f->letter, &f->size, &f->large);
    BOTH("eth0\t0000FFfe\t0", "%15s %x", f->word, &f->hex);
    BOTH("136:*", "%d:*%n", &f->number, &f->end);
    BOTH("1:3", "%d:*%n", &f->number, &f->end);
    BOTH("1:3x", "%d:%d%n", &f->number, &f->number, &f->end);
    BOTH("nameserver 10.0.0.100.200.300", "nameserver %15s", f->word);
    BOTH("nameserver", "nameserver %15s", f->word);
    BOTH("", "%d", &f->number);
    BOTH("  12", "%d %d", &f->number, &f->number);
    BOTH("word", "%d", &f->number);
    CHECK(scan("99999999999", "%d", &(int){0}) == 0); /* sscanf() stores something */
    CHECK(scan("-1", "%u", &(unsigned){0}) == 0);
    return finish("scan");
}
