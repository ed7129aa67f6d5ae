/* Runs one function of a kernel's shared object on the tensors of a file, in place.

   runner KERNEL.so FUNCTION FILE

   Stands in for TVM's runtime under an emulator: the file is mapped, its head says where the
   arguments are (targets/cpu/emulated.py writes it), and the few functions that compiled kernels
   call are below. */
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

/* DLPack's tensor and TVM-FFI's argument, as their ABI has them. */
typedef struct { int32_t type, id; } Device;
typedef struct { uint8_t code, bits; uint16_t lanes; } DType;
typedef struct {
  void *data; Device device; int32_t ndim; DType dtype; int64_t *shape, *strides;
  uint64_t byte_offset;
} Tensor;
typedef struct { int32_t type_index; uint32_t padding; union { int64_t i; double f; void *p; }; } Any;
typedef int (*Function)(void *, const Any *, int32_t, Any *);
typedef struct { void *sync; int32_t tasks; } Group;
typedef int (*Lambda)(int, Group *, void *);

enum { INT = 1, FLOAT = 3, TENSOR = 7, MOST_ARGS = 64, MOST_TASKS = 64, CPU = 1 };

static int threads = 1;

static void fail(const char *what, const char *why) {
  fprintf(stderr, "%s: %s\n", what, why ? why : "");
  exit(1);
}

void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message) {
  fprintf(stderr, "%s: %s\n", kind, message);
}

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  fprintf(stderr, "%s: ", kind);
  for (int32_t i = 0; i < count; ++i) if (parts[i]) fputs(parts[i], stderr);
  fputc('\n', stderr);
}

static void *allocate(int type, int id, uint64_t bytes, int code, int bits) {
  (void)type; (void)id; (void)code; (void)bits;
  return aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
}

static int release(int type, int id, void *at) {
  (void)type; (void)id;
  free(at);
  return 0;
}

typedef struct { Lambda body; Group *group; void *closure; int task, result; } Job;

static void *work(void *at) {
  Job *job = at;
  job->result = job->body(job->task, job->group, job->closure);
  return NULL;
}

/* Every task in a thread of its own, so that what races does so here as well. */
static int launch(Lambda body, void *closure, int tasks) {
  Job jobs[MOST_TASKS];
  pthread_t running[MOST_TASKS];
  Group group = {NULL, tasks > 0 ? tasks : threads};
  if (group.tasks > MOST_TASKS) fail("launch", "too many tasks");
  for (int i = 0; i < group.tasks; ++i) {
    jobs[i] = (Job){body, &group, closure, i, 0};
    if (pthread_create(&running[i], NULL, work, &jobs[i])) fail("pthread_create", "failed");
  }
  int bad = 0;
  for (int i = 0; i < group.tasks; ++i) {
    pthread_join(running[i], NULL);
    bad |= jobs[i].result;
  }
  return bad ? -1 : 0;
}

/* A kernel reaches its runtime through pointers that whoever loads it sets. */
static void provide(void *kernel, const char *name, void *function) {
  void **slot = dlsym(kernel, name);
  if (slot) *slot = function;
}

int main(int argc, char **argv) {
  if (argc != 4) fail("usage", "runner KERNEL.so FUNCTION FILE");
  void *kernel = dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL);
  if (!kernel) fail("dlopen", dlerror());
  provide(kernel, "__TVMBackendParallelLaunch", (void *)launch);
  provide(kernel, "__TVMBackendAllocWorkspace", (void *)allocate);
  provide(kernel, "__TVMBackendFreeWorkspace", (void *)release);
  char name[256];
  snprintf(name, sizeof name, "__tvm_ffi_%s", argv[2]);
  Function function = (Function)dlsym(kernel, name);
  if (!function) fail("dlsym", dlerror());

  int file = open(argv[3], O_RDWR);
  struct stat status;
  if (file < 0 || fstat(file, &status)) fail("open", argv[3]);
  char *base = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (base == MAP_FAILED) fail("mmap", argv[3]);

  /* threads, arguments; then of each: kind, and its value or
     offset, dtype code, bits, ndim, shape ..., strides ... */
  int64_t *word = (int64_t *)base;
  threads = (int)*word++;
  int64_t count = *word++;
  static Any args[MOST_ARGS];
  static Tensor tensors[MOST_ARGS];
  if (count > MOST_ARGS) fail("arguments", "too many");
  for (int64_t i = 0; i < count; ++i) {
    args[i].type_index = (int32_t)*word++;
    if (args[i].type_index != TENSOR) {
      args[i].i = *word++;           /* of a float, its bits */
      continue;
    }
    Tensor *t = &tensors[i];
    t->data = base + *word++;
    t->device = (Device){CPU, 0};
    t->dtype = (DType){(uint8_t)word[0], (uint8_t)word[1], 1};
    t->ndim = (int32_t)word[2];
    t->shape = word + 3;
    t->strides = t->shape + t->ndim;
    word = t->strides + t->ndim;
    args[i].p = t;
  }
  Any result = {0};
  return function(NULL, args, (int32_t)count, &result) ? 1 : 0;
}
