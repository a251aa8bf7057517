/* A file that appears whole or not at all: written under another name in the same folder, then renamed. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct placing {
    int directory, fd;   /* fd -1: nothing is being placed */
    char temporary[40];  /* "" if what was written is to be copied into the file that is there */
    char *name;
    bool replaces;       /* a regular file is there */
    mode_t mode;         /* its mode and owner */
    uid_t uid;
    gid_t gid;
};

/* Takes over `directory` and `name` (malloc()ed), also when it fails. 0 or an errno. */
int place_begin(struct placing *placing, int directory, char *name);
/* `mode` 0: the replaced file's, or 0644. `mtime_ns` 0: now. */
int place_end(struct placing *placing, uint32_t mode, uint64_t mtime_ns);
void place_abort(struct placing *placing);

/* The folder and the name of what `path` leads to, final links followed. -1 with errno. */
int open_target_folder(const char *path, char **name);
/* Makes every folder that is missing before the last component. 0 or an errno. */
int make_parents(const char *path);
int make_folder(const char *path, mode_t mode);
