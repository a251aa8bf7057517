/* Writes a small corpus for the fuzzer into the folder given: one file per type of frame that a client sends. */
#include "frame.h"
#include "util.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

static void put_zeros(struct buffer *out, size_t count) {
    while (count--)
        put_uint(out, 0, 1);
}

static void save(const char *folder, const char *name, struct buffer *out) {
    char *path = must_format("%s/%s", folder, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0 || !write_all(fd, buffer_at(out), buffer_size(out)))
        exit(1);
    close(fd);
    free(path);
    buffer_consume(out, buffer_size(out));
}

int main(int argc, char **argv) {
    struct buffer out = {0};
    if (argc != 2)
        return 2;
    size_t mark = frame_begin(&out, FRAME_START);
    put_zeros(&out, ID_SIZE + 12);
    put_text(&out, "user:group");
    put_text(&out, "/tmp");
    put_zeros(&out, 4);
    put_uint(&out, 2, 4);
    put_text(&out, "echo");
    put_text(&out, "hello");
    put_uint(&out, 1, 4);
    put_text(&out, "A=b");
    frame_end(&out, mark);
    save(argv[1], "start", &out);
    mark = frame_begin(&out, FRAME_IO);
    put_zeros(&out, ID_SIZE + 1 + 24 + 1 + 8);
    put_text(&out, "stdin");
    frame_end(&out, mark);
    save(argv[1], "io", &out);
    mark = frame_begin(&out, FRAME_ENTRY + 1);
    put_zeros(&out, 1 + 16);
    put_text(&out, "/path");
    put_text(&out, "/second");
    frame_end(&out, mark);
    save(argv[1], "file", &out);
    put_entry(&out, &(struct entry){.kind = 'l', .path = "a/b", .target = "../c"});
    save(argv[1], "entry", &out);
    buffer_free(&out);
    return 0;
}
