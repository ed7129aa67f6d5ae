/* Stands in for libascendcl and libruntime: records every call, has "device" memory of its own,
 * queues what a stream gets and runs it only when somebody waits, so that a missing wait shows.
 * A "device binary" is a shared object with npu_name and npu_entry. -DNO_RT leaves out rt*,
 * -DNO_HOST_ARGS the public launch, -DSOC names the chip. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef SOC
#define SOC "Ascend910B3"
#endif
#define API __attribute__((visibility("default")))
enum { QUEUE = 4096, KERNELS = 256, EVENTS = 64 };
enum { MAGIC_ELF = 0x43554245, MAGIC_AIVEC = 0x41415246 };

/* Runs one block: arguments, their size, block, blocks; not 0 is a fault. */
typedef int (*entry_t)(const void *, uint32_t, uint32_t, uint32_t);
typedef struct { const void *key; const char *name; entry_t entry; } kernel_t;
typedef enum { RUN, FILL, MARK } kind_t;
typedef struct { kind_t kind; void *at; size_t size; uint32_t blocks; char *args; } task_t;

static char log_text[1 << 20], failing[64], said[128];
static int fail_code, fail_after, live, queued, initialised, kernels, events;
static kernel_t table[KERNELS];
static task_t queue[QUEUE];
static double clock_us, marks[EVENTS], kernel_us = 7.0;
static char stream_handle, flags_of_cores;

static void note(const char *format, ...) {
    size_t used = strlen(log_text);
    va_list args;
    va_start(args, format);
    vsnprintf(log_text + used, sizeof log_text - used, format, args);
    va_end(args);
}

static int failed(const char *name) {
    note("%s\n", name);
    if (strcmp(name, failing) || fail_after-- > 0) return 0;
    snprintf(said, sizeof said, "recorder says no to %s", name);
    return fail_code;
}
#define ENTER() do { int code = failed(__func__); if (code) return code; } while (0)

API const char *recorder_log(void) { return log_text; }
API int recorder_live(void) { return live; }
API uint64_t recorder_flags(void) { return (uint64_t)&flags_of_cores; }
API void recorder_fail(const char *name, int code, int after) {
    snprintf(failing, sizeof failing, "%s", name);
    fail_code = code;
    fail_after = after;
}
API void recorder_reset(void) {
    log_text[0] = failing[0] = said[0] = 0;
    queued = fail_code = live = 0;
    kernel_us = 7.0;
}

static int push(task_t task) {
    if (queued == QUEUE) return 207000;
    queue[queued++] = task;
    return 0;
}

static int drain(void) {
    int fault = 0;
    for (int i = 0; i < queued; i++) {
        task_t *t = &queue[i];
        if (t->kind == FILL) {
            memset(t->at, 0, t->size);
            clock_us += 1000.0;
        } else if (t->kind == MARK) {
            marks[(intptr_t)t->at - 1] = clock_us;
        } else {
            kernel_t *k = t->at;
            note("run %s blocks=%u size=%zu\n", k->name, t->blocks, t->size);
            for (uint32_t b = 0; b < t->blocks && !fault; b++)
                fault = k->entry(t->args, (uint32_t)t->size, b, t->blocks);
            clock_us += kernel_us;
            free(t->args);
        }
    }
    queued = 0;
    if (fault) snprintf(said, sizeof said, "kernel fault %d", fault);
    return fault ? 507035 : 0;
}

static int add_kernel(const void *key, void *so, const char *name) {
    const char *has = so ? dlsym(so, "npu_name") : NULL;
    if (!has || strcmp(has, name)) return 507027;
    table[kernels] = (kernel_t){key, strdup(name), (entry_t)dlsym(so, "npu_entry")};
    kernels++;
    return 0;
}

static void *open_binary(const void *data, size_t size) {
    char path[64];
    int fd = memfd_create("binary", 0);
    if (write(fd, data, size) != (ssize_t)size) return NULL;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    void *so = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!so) snprintf(said, sizeof said, "%.120s", dlerror());
    return so;                       /* fd stays open: another one must not get its path */
}

__attribute__((unused))
static int launch(const void *key, uint32_t blocks, const void *args, size_t size) {
    for (int i = 0; i < kernels; i++)
        if (table[i].key == key) {
            task_t t = {RUN, &table[i], size, blocks, malloc(size)};
            memcpy(t.args, args, size);
            return push(t);
        }
    return 507027;
}

API int aclInit(const char *config) {
    (void)config;
    ENTER();
    return initialised++ ? 100002 : 0;
}
API int aclrtSetDevice(int device) { ENTER(); return device ? 107001 : 0; }
API const char *aclrtGetSocName(void) { return SOC; }
API const char *aclGetRecentErrMsg(void) { return said[0] ? said : NULL; }
API int aclrtCreateStream(void **stream) { ENTER(); *stream = &stream_handle; return 0; }
API int aclrtDestroyStream(void *stream) { (void)stream; ENTER(); return 0; }
API int aclrtSynchronizeStream(void *stream) { (void)stream; ENTER(); return drain(); }
API int aclrtMalloc(void **at, size_t size, int policy) {
    (void)policy;
    ENTER();
    *at = aligned_alloc(64, (size + 95) / 64 * 64);
    if (size < (64 << 20)) memset(*at, 0xA5, size);
    live++;
    return 0;
}
API int aclrtFree(void *at) { ENTER(); free(at); live--; return 0; }
API int aclrtMemcpy(void *to, size_t room, const void *from, size_t size, int kind) {
    ENTER();
    if (size > room || kind < 1 || kind > 2) return 107000;
    memcpy(to, from, size);
    return 0;
}
API int aclrtMemsetAsync(void *at, size_t room, int value, size_t size, void *stream) {
    (void)stream;
    ENTER();
    return size > room || value ? 107000 : push((task_t){FILL, at, size > 4096 ? 4096 : size, 0, 0});
}
API int aclrtCreateEvent(void **event) {
    ENTER();
    *event = (void *)(intptr_t)++events;
    return 0;
}
API int aclrtDestroyEvent(void *event) { (void)event; ENTER(); return 0; }
API int aclrtRecordEvent(void *event, void *stream) {
    (void)stream;
    ENTER();
    return push((task_t){MARK, event, 0, 0, 0});
}
API int aclrtSynchronizeEvent(void *event) { (void)event; ENTER(); return drain(); }
API int aclrtEventElapsedTime(float *ms, void *start, void *end) {
    ENTER();
    *ms = (float)((marks[(intptr_t)end - 1] - marks[(intptr_t)start - 1]) / 1e3);
    return 0;
}
API int aclrtGetHardwareSyncAddr(void **at) { ENTER(); *at = &flags_of_cores; return 0; }

typedef struct { int type; union { uint32_t magic, reserved[4]; } value; } option_t;
typedef struct { option_t *options; size_t count; } options_t;
API int aclrtBinaryLoadFromData(const void *data, size_t size, options_t *options, void **binary) {
    ENTER();
    if (options->count != 1 || options->options->type != 2) return 107000;
    note("magic=%x\n", options->options->value.magic);
    *binary = open_binary(data, size);
    return *binary ? 0 : 107000;
}
API int aclrtBinaryGetFunction(void *binary, const char *name, void **function) {
    ENTER();
    *function = &table[kernels];
    return add_kernel(*function, binary, name);
}
#ifndef NO_HOST_ARGS
API int aclrtLaunchKernelWithHostArgs(void *function, uint32_t blocks, void *stream, void *config,
                                      void *args, size_t size, void *holders, size_t count) {
    (void)stream;
    ENTER();
    return config || holders || count ? 107000 : launch(function, blocks, args, size);
}
#endif

#ifndef NO_RT
typedef struct { uint32_t magic, version; const void *data; uint64_t length; } dev_binary_t;
API int rtDevBinaryRegister(const dev_binary_t *binary, void **handle) {
    ENTER();
    note("magic=%x\n", binary->magic);
    if (binary->version || (binary->magic != MAGIC_ELF && binary->magic != MAGIC_AIVEC))
        return 107000;
    *handle = open_binary(binary->data, binary->length);
    return *handle ? 0 : 107000;
}
API int rtFunctionRegister(void *binary, const void *stub, const char *stub_name,
                           const char *name, uint32_t mode) {
    ENTER();
    note("stub %s\n", stub_name);
    return mode ? 107000 : add_kernel(stub, binary, name);
}
API int rtKernelLaunch(const void *stub, uint32_t blocks, void *args, uint32_t size, void *sm,
                       void *stream) {
    (void)stream;
    ENTER();
    note("stream=%d\n", stream == &stream_handle);
    return sm ? 107000 : launch(stub, blocks, args, size);
}
API int rtGetC2cCtrlAddr(uint64_t *at, uint32_t *size) {
    ENTER();
    *at = (uint64_t)&flags_of_cores;
    *size = 8;
    return 0;
}
#endif
