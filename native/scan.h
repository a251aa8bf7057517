/* sscanf(3) without what nobody here needs: that of a C library brings ten KiB, for numbers with fractions. */
#pragma once

/* Knows %d %u %x with l and ll, %s with a width, %c, %n, and * for what is only skipped. Returns how many
 * values it has stored. Numbers that do not fit are no matches. */
int scan(const char *text, const char *format, ...) __attribute__((format(scanf, 2, 3)));
