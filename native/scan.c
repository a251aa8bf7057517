/* One conversion of the format after the other; see scan.h. */
#include "scan.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

struct conversion {
    bool skips;
    size_t width; /* 0: none */
    int longs;
    char kind;
};

static const char *read_conversion(const char *at, struct conversion *conversion) {
    *conversion = (struct conversion){.skips = *at == '*'};
    at += conversion->skips;
    for (; isdigit((unsigned char)*at); at++)
        conversion->width = conversion->width * 10 + (size_t)(*at - '0');
    for (; *at == 'l'; at++)
        conversion->longs++;
    conversion->kind = *at;
    return at + 1;
}

static void store(void *to, const struct conversion *conversion, unsigned long long number) {
    if (conversion->longs == 2)
        *(unsigned long long *)to = number;
    else if (conversion->longs == 1)
        *(unsigned long *)to = (unsigned long)number;
    else
        *(unsigned *)to = (unsigned)number;
}

static bool fits(const struct conversion *conversion, unsigned long long number, bool negative) {
    bool is_signed = conversion->kind == 'd';
    unsigned long long most = conversion->longs > 0 ? (is_signed ? LLONG_MAX : ULLONG_MAX) : is_signed ? INT_MAX : UINT_MAX;
    return negative ? is_signed && 0 - number <= most : number <= most;
}

/* The end of what was read, NULL if it is no number. */
static const char *read_number(const char *text, const struct conversion *conversion, void *to) {
    char *end;
    bool negative = *text == '-';
    errno = 0;
    unsigned long long number = strtoull(text, &end, conversion->kind == 'x' ? 16 : 10);
    if (end == text || errno != 0 || !fits(conversion, number, negative))
        return NULL;
    if (to)
        store(to, conversion, number);
    return end;
}

static const char *read_text(const char *text, const struct conversion *conversion, char *to) {
    size_t size = conversion->kind == 'c' ? *text != '\0' : strcspn(text, " \t\n");
    if (conversion->kind == 's' && conversion->width > 0 && size > conversion->width)
        size = conversion->width;
    if (size == 0)
        return NULL;
    if (to)
        memcpy(to, text, size);
    if (to && conversion->kind == 's')
        to[size] = '\0';
    return text + size;
}

int scan(const char *text, const char *format, ...) {
    va_list values;
    int stored = 0;
    const char *at = text;
    va_start(values, format);
    while (at && *format != '\0') {
        struct conversion conversion;
        if (isspace((unsigned char)*format)) {
            at += strspn(at, " \t\n");
            format++;
            continue;
        }
        if (*format != '%') {
            at = *at == *format++ ? at + 1 : NULL;
            continue;
        }
        format = read_conversion(format + 1, &conversion);
        void *to = conversion.skips ? NULL : va_arg(values, void *);
        if (conversion.kind == 'n') {
            if (to)
                *(int *)to = (int)(at - text);
            continue;
        }
        if (conversion.kind != 'c')
            at += strspn(at, " \t\n");
        at = strchr("sc", conversion.kind) ? read_text(at, &conversion, to) : read_number(at, &conversion, to);
        stored += at && to;
    }
    va_end(values);
    return stored;
}
