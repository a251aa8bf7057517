/* Who a command runs as: the sandbox's /etc/passwd and /etc/group, read by ourselves. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

enum { MAX_GROUPS = 256, MAX_USER_FILE = 1 << 20 };

struct user {
    uid_t uid;
    gid_t gid;
    gid_t groups[MAX_GROUPS]; /* supplementary */
    size_t group_count;
    char name[64];            /* "" when the uid has no name */
    char home[1024];          /* "" when passwd does not tell */
};

/* `spec` is name, uid, name:group or uid:gid. The texts are the two files, "" where one is missing.
 * On false `why` is a sentence's end ("is not in /etc/passwd"). */
bool user_find(const char *spec, const char *passwd, const char *group, struct user *user, const char **why);
/* The same with the files of this root. Reads them: may take as long as the sandbox's file system likes. */
bool user_look_up(const char *spec, struct user *user, const char **why);
