/* Why something could not be done: one sentence per process, kept where it happened and reported once, at the top. */
#pragma once

#include <stdbool.h>

/* Keep "KIND sentence" and return false. KIND is one of docs/protocol.md; NULL chooses by errno. `%m` is the errno's text.
 * The first failure wins: what fails while cleaning up after it does not hide it. */
bool fail(const char *kind, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* What was kept, or NULL. */
const char *failure(void);

/* Keep what init has reported instead: it is the cause, and what failed here then the consequence. */
void fail_as(const char *kind_and_sentence);

/* A supervisor serves one request after the other: forget why the last one failed. */
void fail_forget(void);
