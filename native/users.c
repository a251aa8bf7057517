/* /etc/passwd and /etc/group as a sandbox wrote them: every line may lie. No NSS (it would load the sandbox's libraries), no
 * name that is a number, no number outside 0..2^32-2, no line that is only half right. */
#include "users.h"
#include "util.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { FIELDS = 7 };

struct text {
    const char *at;
    size_t size;
};

/* The next line cut at its colons; the number of fields, 0 at the end of the file. More than FIELDS make it no known line. */
static size_t next_line(const char **rest, struct text fields[FIELDS]) {
    if (!**rest)
        return 0;
    size_t size = strcspn(*rest, "\n"), count = 0;
    const char *at = *rest, *end = at + size;
    *rest = *end ? end + 1 : end;
    if (size && end[-1] == '\r')
        end--;
    for (;; at++) {
        const char *colon = memchr(at, ':', (size_t)(end - at));
        const char *stop = colon ? colon : end;
        if (count < FIELDS)
            fields[count] = (struct text){at, (size_t)(stop - at)};
        count++;
        if (!colon)
            return count;
        at = stop;
    }
}

static bool same(struct text field, const char *text) {
    return field.size == strlen(text) && memcmp(field.at, text, field.size) == 0;
}

static bool all_digits(const char *text) {
    return *text && !text[strspn(text, "0123456789")];
}

/* -1 is "no change" to the kernel, so 2^32-1 is nobody's id. */
static bool id_of(const char *digits, uint32_t *id) {
    uint64_t value;
    if (!parse_u64(digits, &value) || value >= UINT32_MAX)
        return false;
    *id = (uint32_t)value;
    return true;
}

static bool copy_field(struct text field, char *to, size_t room) {
    if (field.size >= room)
        return false;
    memcpy(to, field.at, field.size);
    to[field.size] = 0;
    return true;
}

static bool field_id(struct text field, uint32_t *id) {
    char digits[24];
    return copy_field(field, digits, sizeof digits) && id_of(digits, id);
}

/* The first sound line whose name (or, without a name, whose uid) is the one. */
static bool find_passwd(const char *passwd, const char *name, uid_t uid, struct user *user) {
    struct text field[FIELDS];
    for (size_t count; (count = next_line(&passwd, field));) {
        uint32_t id, gid;
        if (count < 6 || count > 7 || !field_id(field[2], &id) || !field_id(field[3], &gid))
            continue;
        if (name ? !same(field[0], name) : id != uid)
            continue;
        if (!copy_field(field[0], user->name, sizeof user->name) || !copy_field(field[5], user->home, sizeof user->home))
            continue;
        user->uid = id;
        user->gid = gid;
        return true;
    }
    return false;
}

static bool find_group(const char *group, const char *name, gid_t *gid) {
    struct text field[FIELDS];
    for (size_t count; (count = next_line(&group, field));)
        if (count >= 3 && count <= 4 && same(field[0], name) && field_id(field[2], gid))
            return true;
    return false;
}

static bool is_member(struct text members, const char *name) {
    for (const char *at = members.at, *end = at + members.size; at < end;) {
        const char *comma = memchr(at, ',', (size_t)(end - at));
        const char *stop = comma ? comma : end;
        if (same((struct text){at, (size_t)(stop - at)}, name))
            return true;
        at = stop + 1;
    }
    return false;
}

static void find_memberships(const char *group, struct user *user) {
    struct text field[FIELDS];
    for (size_t count; *user->name && user->group_count < MAX_GROUPS && (count = next_line(&group, field));) {
        uint32_t gid;
        if (count == 4 && field_id(field[2], &gid) && is_member(field[3], user->name))
            user->groups[user->group_count++] = gid;
    }
}

static bool find_person(const char *name, const char *passwd, struct user *user, const char **why) {
    if (!all_digits(name)) {
        *why = "is not in the sandbox's /etc/passwd; add the user in the image, or give a number";
        return *name && find_passwd(passwd, name, 0, user);
    }
    *why = "is not a user id from 0 to 4294967294";
    uint32_t uid;
    if (!id_of(name, &uid))
        return false;
    if (!find_passwd(passwd, NULL, uid, user))
        user->uid = uid; /* an unknown number is a user without name and home, in group 0, as everywhere with containers */
    return true;
}

static bool choose_group(const char *name, const char *group, struct user *user, const char **why) {
    if (all_digits(name)) {
        *why = "has a group id that is not from 0 to 4294967294";
        return id_of(name, &user->gid);
    }
    *why = "has a group that is not in the sandbox's /etc/group; add the group in the image, or give a number";
    return find_group(group, name, &user->gid);
}

bool user_find(const char *spec, const char *passwd, const char *group, struct user *user, const char **why) {
    char name[64];
    size_t size = strcspn(spec, ":");
    *user = (struct user){0};
    *why = "is too long for a name";
    if (!copy_field((struct text){spec, size}, name, sizeof name) || !find_person(name, passwd, user, why))
        return false;
    if (spec[size])
        return choose_group(spec + size + 1, group, user, why);
    find_memberships(group, user);
    return true;
}

bool user_look_up(const char *spec, struct user *user, const char **why) {
    char *passwd = read_file("/etc/passwd", MAX_USER_FILE, NULL);
    char *group = read_file("/etc/group", MAX_USER_FILE, NULL);
    bool found = user_find(spec, passwd ? passwd : "", group ? group : "", user, why);
    free(passwd);
    free(group);
    return found;
}
