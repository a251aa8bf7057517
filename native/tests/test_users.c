/* Promises of users.c: numbers stay numbers, lines that lie are passed over, nothing is unbounded. */
#include "check.h"
#include "users.h"
#include "util.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char passwd[] =
    "1000:x:0:0::/evil:/bin/sh\n"
    "minus:x:-1:0::/:/bin/sh\n"
    "wide:x:4294967296:0::/:/bin/sh\n"
    "nobody2:x:4294967295:0::/:/bin/sh\n"
    "short:x:5\n"
    "long:x:5:5::/:/bin/sh:more\n"
    "\n"
    ":x:7:7::/seven:/bin/sh\n"
    "alice:x:1000:1001:Alice:/home/alice:/bin/sh\r\n"
    "alice:x:0:0::/second:/bin/sh\n"
    "last:x:2000:2000::/home/last:/bin/sh";
static const char group[] =
    "1001:x:0:alice\n"
    "staff:x:50:bob,alice\r\n"
    "wheel:x:-1:alice\n"
    "near:x:51:alicia,malice\n"
    "alone:x:52:alice";

static struct user user;
static const char *why;

static bool find(const char *spec) {
    return user_find(spec, passwd, group, &user, &why);
}

static void names_are_found(void) {
    CHECK(find("alice") && user.uid == 1000 && user.gid == 1001 && strcmp(user.home, "/home/alice") == 0);
    CHECK(user.group_count == 3 && user.groups[0] == 0 && user.groups[1] == 50 && user.groups[2] == 52);
    CHECK(find("last") && user.uid == 2000 && user.group_count == 0);
    CHECK(find("alice:staff") && user.gid == 50 && user.group_count == 0);
    CHECK(find("alice:7") && user.gid == 7);
}

static void numbers_stay_numbers(void) {
    CHECK(find("1000") && user.uid == 1000 && user.gid == 1001 && strcmp(user.name, "alice") == 0);
    CHECK(find("4242") && user.uid == 4242 && user.gid == 0 && !*user.name && !*user.home);
    CHECK(find("1000:1001") && user.gid == 1001);
    CHECK(find("4294967294") && !find("4294967295") && !find("4294967296") && !find("99999999999999999999999"));
    CHECK(!find("1:4294967295") && !find("1:99999999999999999999"));
}

static void everything_else_is_nobody(void) {
    static const char *const wrong[] = {"0x0", " root", "+1", "-1", "a:b:c", "alice:", "alice:nogroup", ":50", "minus", "wide",
                                        "nobody2", "short", "long", "ali", "alice2", "Alice", "alice:1:2"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        CHECK(!find(wrong[i]) && *why);
    char huge[5000];
    memset(huge, 'a', sizeof huge - 1);
    huge[sizeof huge - 1] = 0;
    CHECK(!find(huge));
}

static void files_may_be_empty_or_strange(void) {
    CHECK(user_find("0", "", "", &user, &why) && user.uid == 0);
    CHECK(!user_find("root", "", "", &user, &why));
    CHECK(!user_find("root", "\n\n\r\n:::::::::\n:", "", &user, &why));
    CHECK(!user_find("root", "root", "", &user, &why) && !user_find("root", "root:x:0:0", "", &user, &why));
}

static void memberships_are_bounded(void) {
    enum { COUNT = 5000 };
    char *many = must_alloc(COUNT * 40), *at = many;
    for (int i = 0; i < COUNT; i++)
        at += sprintf(at, "g%d:x:%d:alice\n", i, i + 10);
    CHECK(user_find("alice", passwd, many, &user, &why) && user.group_count == MAX_GROUPS);
    free(many);
}

/* A sparse file: 300 MB of NUL cost nothing to make, and are not read to their end. */
static void huge_files_are_not_read(void) {
    char path[] = "/tmp/openmodal-users-XXXXXX";
    int fd = mkstemp(path);
    CHECK(fd >= 0 && ftruncate(fd, 300 << 20) == 0);
    CHECK(!read_file(path, MAX_USER_FILE, NULL) && errno == EFBIG);
    close(fd);
    unlink(path);
    CHECK(mkfifo(path, 0600) == 0);
    free(read_file(path, MAX_USER_FILE, NULL)); /* returns: a FIFO does not hold us */
    unlink(path);
}

int main(void) {
    names_are_found();
    numbers_stay_numbers();
    everything_else_is_nobody();
    files_may_be_empty_or_strange();
    memberships_are_bounded();
    huge_files_are_not_read();
    return finish("users");
}
