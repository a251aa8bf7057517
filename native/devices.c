/* A program of at most four instructions a device, in the kernel's own code of them (linux/bpf.h); see devices.h. */
#include "kernel.h"
#include "devices.h"

#include "fail.h"
#include "scan.h"
#include "util.h"

#include <stdio.h>
#include <string.h>

/* clang-format off */
enum {
    PROGRAM_LOAD = 5, PROGRAM_ATTACH = 8, CGROUP_DEVICE = 15, ATTACH_DEVICE = 6, ALLOW_MULTI = 2,
    LOAD_WORD = 0x61, AND = 0x57, JUMP_UNLESS_EQUAL = 0x55, MOVE = 0xb7, EXIT = 0x95,
    RESULT = 0, CONTEXT = 1, KIND = 2, MAJOR = 3, MINOR = 4,
    CHARACTER = 2, MOST = 32,
};
/* clang-format on */

struct instruction {
    uint8_t code, registers; /* destination in the low half, source in the high one */
    int16_t jump;
    int32_t value;
};

struct program {
    struct instruction at[MOST * 4 + 8];
    uint32_t length;
};

struct load_request { /* the head of union bpf_attr */
    uint32_t type, length;
    uint64_t instructions, license;
    uint32_t log_level, log_size;
    uint64_t log;
    uint32_t version, flags;
    char name[16];
};

struct attach_request {
    uint32_t target, program, type, flags;
};

static void add(struct program *program, uint8_t code, int destination, int16_t jump, int32_t value) {
    program->at[program->length++] = (struct instruction){code, (uint8_t)destination, jump, value};
}

/* struct bpf_cgroup_dev_ctx: what for and the kind (its low half), major, minor. */
static void load_field(struct program *program, int into, int16_t offset) {
    program->at[program->length++] = (struct instruction){LOAD_WORD, (uint8_t)(into | CONTEXT << 4), offset, 0};
}

static void answer(struct program *program, int32_t yes) {
    add(program, MOVE, RESULT, 0, yes);
    add(program, EXIT, 0, 0, 0);
}

static bool allow(struct program *program, const char *device) {
    int major = 0, minor = 0, end = 0;
    bool any = scan(device, "%d:*%n", &major, &end) == 1 && end > 0 && device[end] == '\0';
    if (!any && (scan(device, "%d:%d%n", &major, &minor, &end) != 2 || device[end] != '\0'))
        return fail("plan", "device must be like 1:3 or 136:*, not %.40s", device);
    add(program, JUMP_UNLESS_EQUAL, MAJOR, any ? 2 : 3, major);
    if (!any)
        add(program, JUMP_UNLESS_EQUAL, MINOR, 2, minor);
    answer(program, 1);
    return true;
}

static bool write_program(struct program *program, const struct strings *devices) {
    if (devices->count > MOST)
        return fail("plan", "device: %d of them at most", MOST);
    load_field(program, KIND, 0);
    load_field(program, MAJOR, 4);
    load_field(program, MINOR, 8);
    add(program, AND, KIND, 0, 0xffff);
    add(program, JUMP_UNLESS_EQUAL, KIND, 0, CHARACTER);
    struct instruction *other_kind = &program->at[program->length - 1];
    for (size_t i = 0; i < devices->count; i++)
        if (!allow(program, devices->item[i]))
            return false;
    other_kind->jump = (int16_t)(&program->at[program->length] - other_kind - 1);
    answer(program, 0);
    return true;
}

bool devices_limit(int cgroup, const struct strings *devices) {
    struct program program = {.length = 0};
    if (devices->count == 0)
        return true;
    if (!write_program(&program, devices))
        return false;
    struct load_request load = {.type = CGROUP_DEVICE,
                                .length = program.length,
                                .instructions = (uint64_t)(uintptr_t)program.at,
                                .license = (uint64_t)(uintptr_t) "Apache-2.0",
                                .name = "openmodal"};
    AUTO_FD int loaded = (int)syscall(SYS_bpf, PROGRAM_LOAD, &load, sizeof load);
    struct attach_request attach = {
        .target = (uint32_t)cgroup, .program = (uint32_t)loaded, .type = ATTACH_DEVICE, .flags = ALLOW_MULTI};
    return (loaded >= 0 && syscall(SYS_bpf, PROGRAM_ATTACH, &attach, sizeof attach) == 0) ||
           fail("limit",
                "cannot load the list of the sandbox's devices: %m; the kernel needs CONFIG_CGROUP_BPF, or create it without limits: "
                "allow_degraded=[\"limits\"]");
}
