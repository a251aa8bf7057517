/* Loop devices by hand; see disk.h and loop(4). */
#include "kernel.h"
#include "disk.h"

#include "fail.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>

struct loop_info { /* loop_info64 */
    uint64_t device, inode, rdevice, offset, size_limit;
    uint32_t number, encrypt_type, encrypt_key_size, flags;
    uint8_t file_name[64], crypt_name[64], encrypt_key[32];
    uint64_t init[2];
};
struct loop_config {
    uint32_t fd, block_size;
    struct loop_info info;
    uint64_t reserved[8];
};
enum { LOOP_CONFIGURE = 0x4C0A, LOOP_CTL_GET_FREE = 0x4C82, LOOP_AUTOCLEAR = 4, ATTEMPTS = 64 };

/* Between asking for a free device and taking it, somebody else may have taken it. */
static int take_loop(int file, char *name, size_t size) {
    AUTO_FD int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    if (control < 0)
        return fail("kernel", "disk= needs loop devices, and /dev/loop-control cannot be opened: %m"), -1;
    for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
        int number = ioctl(control, LOOP_CTL_GET_FREE);
        snprintf(name, size, "/dev/loop%d", number);
        int loop = number < 0 ? -1 : open(name, O_RDWR | O_CLOEXEC);
        struct loop_config config = {.fd = (uint32_t)file, .info.flags = LOOP_AUTOCLEAR};
        if (loop >= 0 && ioctl(loop, LOOP_CONFIGURE, &config) == 0)
            return loop;
        int why = errno;
        close_fd(&loop);
        errno = why;
        if (why != EBUSY)
            break;
    }
    fail(NULL, "no loop device can be had for disk=: %m");
    return -1;
}

int disk_attach(const char *path, char *device, size_t size) {
    AUTO_FD int file = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (file < 0)
        return fail(NULL, "cannot open the sandbox's disk %s: %m", path), -1;
    return take_loop(file, device, size);
}
