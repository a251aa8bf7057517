/* libFuzzer on everything that decodes a client's bytes: never a read or write outside of the frame, never a leak. */
#include "frame.h"
#include "util.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile size_t touched; /* keeps the compiler from leaving the reads out */

static void decode(const struct frame *frame) {
    struct start_request start;
    struct io_request io;
    struct file_request file;
    struct entry entry;
    if (decode_io(frame, &io) && io.size)
        touched += io.data[io.size - 1];
    decode_start(frame, &start);
    for (char **at = start.argv; *at; at++)
        touched += strlen(*at);
    start_free(&start);
    struct setup_request setup;
    decode_setup(frame, &setup);
    for (char **at = setup.env; *at; at++)
        touched += strlen(*at);
    setup_free(&setup);
    if (frame->type & 1)
        decode_file(frame, &file);
    else
        decode_entry(frame, &entry);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct frame frame;
    uint8_t *copy = must_alloc(size);
    memcpy(copy, data, size);
    for (size_t at = 0; frame_peek(copy + at, size - at, &frame) == FRAME_WHOLE; at += frame.whole)
        decode(&frame);
    free(copy);
    return 0;
}
