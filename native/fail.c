/* One kept failure per process; see fail.h. */
#include "fail.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static char kept[1024];

static const char *kind_of(int error) {
    switch (error) {
    case EPERM:
    case EACCES:
    case EROFS:
        return "permission";
    case ENOSPC:
    case EDQUOT:
        return "space";
    case EMFILE:
    case ENFILE:
    case ENOMEM:
    case EAGAIN:
    case EUSERS:
        return "limit";
    case ENOSYS:
    case EINVAL:
    case EOPNOTSUPP:
    case ENODEV:
        return "kernel";
    default:
        return "internal";
    }
}

bool fail(const char *kind, const char *format, ...) {
    if (kept[0] != '\0')
        return false;
    int used = snprintf(kept, sizeof kept, "%s ", kind ? kind : kind_of(errno));
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(kept + used, sizeof kept - (size_t)used, format, arguments); /* errno is still the caller's: %m */
    va_end(arguments);
    for (char *at = kept; *at != '\0'; at++) /* a path may hold anything, a report is one line */
        if ((unsigned char)*at < ' ')
            *at = '?';
    return false;
}

const char *failure(void) {
    return kept[0] != '\0' ? kept : NULL;
}

void fail_as(const char *kind_and_sentence) {
    snprintf(kept, sizeof kept, "%s", kind_and_sentence);
}

void fail_forget(void) {
    kept[0] = '\0';
}
