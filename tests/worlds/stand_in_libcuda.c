/* A stand-in for libcuda.so.1: the driver calls that the seam makes, on ordinary memory, without a GPU.

   Work on a stream waits until the stream is synchronized, so a buffer that changes or is freed too early is seen. A
   captured graph holds the work that was enqueued meanwhile, with its addresses. Every call needs what the real one
   needs: a current context, live handles, live addresses. Each call is written down, any can be told to fail. No time
   passes: an event is the number of operations before it. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int CUresult;
typedef unsigned long long CUdeviceptr;
typedef void (*Kernel)(int);
#define API __attribute__((visibility("default")))
enum { OK, INVALID_VALUE, OUT_OF_MEMORY, NOT_INITIALIZED, NO_DEVICE = 100, INVALID_CONTEXT = 201, INVALID_HANDLE = 400,
       ILLEGAL_ADDRESS = 700, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901, CAPTURE_IMPLICIT = 906 };
enum Kind { FREE, MEMORY, HOST, STREAM, EVENT, GRAPH, EXEC, KINDS };
enum Op { COPY, RUN, RECORD };

typedef struct { enum Op op; char *to; const char *from; size_t bytes; Kernel kernel; int id; } Work;
typedef struct { Work *work; int count; } List;
typedef struct { enum Kind kind; char *memory; size_t bytes; List list; int capturing; pthread_t owner; List captured;
                 int invalid; long at; } Object;

#define MOST 4096
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static Object objects[MOST];
static __thread void *stack[64];
static __thread int depth;
static char log_text[1 << 20], failing[64];
static int initialized, version, devices, init_answer, integrated, multiprocessors, capability, retains, fail_at, fail_code,
    fail_count, sticky;
static long clock_ticks;
static char name[256];
static char context_object;

#define CALL(...) CUresult answer_ = enter(__func__, __VA_ARGS__); if (answer_) return leave(answer_)
#define CURRENT if (!depth || stack[depth - 1] != &context_object) return leave(INVALID_CONTEXT); if (sticky) return leave(sticky)

static CUresult enter(const char *function, const char *arguments) {
  pthread_mutex_lock(&mutex);
  size_t used = strlen(log_text);
  snprintf(log_text + used, sizeof log_text - used, "%s%s\n", function, arguments);
  return !strcmp(function, failing) && ++fail_count == fail_at ? fail_code : OK;
}
static CUresult leave(CUresult answer) { pthread_mutex_unlock(&mutex); return answer; }
static const char *text(const char *format, unsigned long long value) {
  static __thread char buffer[64];
  snprintf(buffer, sizeof buffer, format, value);
  return buffer;
}
static Object *make(enum Kind kind) {
  for (int i = 1; i < MOST; i++)
    if (objects[i].kind == FREE) { memset(&objects[i], 0, sizeof *objects); objects[i].kind = kind; return &objects[i]; }
  abort();
}
static Object *get(void *handle, enum Kind kind) {
  Object *object = handle;
  return object > objects && object < objects + MOST && object->kind == kind ? object : NULL;
}
static Object *block(const char *address, size_t bytes, enum Kind kind) {
  for (int i = 1; i < MOST; i++)
    if (objects[i].kind == kind && address >= objects[i].memory && address + bytes <= objects[i].memory + objects[i].bytes)
      return &objects[i];
  return NULL;
}
static void append(List *list, Work work) {
  list->work = realloc(list->work, (list->count + 1) * sizeof work);
  list->work[list->count++] = work;
}
static void drop(Object *object) { free(object->list.work); free(object->captured.work); object->kind = FREE; }
static CUresult enqueue(Object *stream, Work work) {
  append(stream->capturing ? &stream->captured : &stream->list, work);
  return OK;
}
static int reachable(const char *address, size_t bytes) { return block(address, bytes, MEMORY) || block(address, bytes, HOST); }
static CUresult drain(Object *stream) {
  for (int i = 0; i < stream->list.count && !sticky; i++) {
    Work work = stream->list.work[i];
    clock_ticks++;
    if (work.op == COPY) {
      int device = block(work.to, work.bytes, MEMORY) || block(work.from, work.bytes, MEMORY);
      if (!device) sticky = ILLEGAL_ADDRESS; else memcpy(work.to, work.from, work.bytes);
    } else if (work.op == RECORD) ((Object *)work.to)->at = clock_ticks;
    else { pthread_mutex_unlock(&mutex); work.kernel(work.id); pthread_mutex_lock(&mutex); }
  }
  stream->list.count = 0;
  return sticky;
}

/* What tests tell the stand-in, and ask it. */
API void standin_reset(int cuda, int how_many, int init, int tegra, int sms, int cc, const char *called) {
  pthread_mutex_lock(&mutex);
  for (int i = 1; i < MOST; i++) if (objects[i].kind) { if (objects[i].kind <= HOST) free(objects[i].memory); drop(&objects[i]); }
  log_text[0] = failing[0] = 0;
  initialized = retains = fail_at = fail_count = sticky = depth = 0;
  version = cuda, devices = how_many, init_answer = init, integrated = tegra, multiprocessors = sms, capability = cc;
  snprintf(name, sizeof name, "%s", called);
  pthread_mutex_unlock(&mutex);
}
__attribute__((constructor)) static void from_environment(void) {
  const char *cuda = getenv("STAND_IN_CUDA");
  if (cuda) standin_reset(atoi(cuda), 1, OK, 0, 46, 89, "NVIDIA Stand-in 89");
}
API void standin_fail(const char *function, int nth, int code) {
  pthread_mutex_lock(&mutex);
  snprintf(failing, sizeof failing, "%s", function);
  fail_at = nth, fail_code = code, fail_count = 0;
  pthread_mutex_unlock(&mutex);
}
API const char *standin_log(void) { return log_text; }
API void standin_clear_log(void) { log_text[0] = 0; }
API int standin_live(int kind) { int n = 0; for (int i = 1; i < MOST; i++) n += (int)objects[i].kind == kind; return n; }
API int standin_retains(void) { return retains; }
API int standin_depth(void) { return depth; }
API int standin_reachable(void *address, size_t bytes) { return reachable(address, bytes); }
API void standin_break(int code) { sticky = code; }
API CUresult standin_launch(void *stream, Kernel kernel, int id) {
  CALL(text(" id=%llu", id)); CURRENT;
  Object *s = get(stream, STREAM);
  if (!s) return leave(INVALID_HANDLE);
  return leave(enqueue(s, (Work){RUN, .kernel = kernel, .id = id}));
}

/* The driver. */
API CUresult cuInit(unsigned flags) { CALL(""); initialized = !init_answer; return leave(init_answer); }
API CUresult cuDriverGetVersion(int *out) { CALL(""); *out = version; return leave(OK); }
API CUresult cuGetErrorName(CUresult code, const char **out) {
  *out = code == NO_DEVICE ? "CUDA_ERROR_NO_DEVICE" : code == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY"
       : code == 803 ? "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" : code == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS"
       : code == INVALID_CONTEXT ? "CUDA_ERROR_INVALID_CONTEXT" : NULL;
  return *out ? OK : INVALID_VALUE;
}
API CUresult cuGetErrorString(CUresult code, const char **out) {
  *out = code == NO_DEVICE ? "no CUDA-capable device is detected" : code == OUT_OF_MEMORY ? "out of memory"
       : code == 803 ? "system has unsupported display driver / cuda driver combination"
       : code == ILLEGAL_ADDRESS ? "an illegal memory access was encountered"
       : code == INVALID_CONTEXT ? "invalid device context" : NULL;
  return *out ? OK : INVALID_VALUE;
}
API CUresult cuDeviceGetCount(int *out) { CALL(""); if (!initialized) return leave(NOT_INITIALIZED); *out = devices; return leave(OK); }
API CUresult cuDeviceGet(int *out, int ordinal) {
  CALL(text(" %llu", ordinal));
  if (!initialized) return leave(NOT_INITIALIZED);
  *out = ordinal;
  return leave(ordinal < devices ? OK : 101);
}
API CUresult cuDeviceGetName(char *out, int size, int device) { CALL(""); snprintf(out, size, "%s", name); return leave(OK); }
API CUresult cuDeviceGetUuid_v2(char *out, int device) { CALL(""); for (int i = 0; i < 16; i++) out[i] = i * 17; return leave(OK); }
API CUresult cuDeviceTotalMem_v2(size_t *out, int device) { CALL(""); *out = (size_t)8 << 30; return leave(OK); }
API CUresult cuDeviceGetAttribute(int *out, int attribute, int device) {
  CALL(text(" %llu", attribute));
  *out = attribute == 16 ? multiprocessors : attribute == 18 ? integrated : attribute == 75 ? capability / 10
       : attribute == 76 ? capability % 10 : -1;
  return leave(*out < 0 ? INVALID_VALUE : OK);
}
API CUresult cuDevicePrimaryCtxRetain(void **out, int device) {
  CALL("");
  if (!initialized) return leave(NOT_INITIALIZED);
  retains++, *out = &context_object;
  return leave(OK);
}
API CUresult cuDevicePrimaryCtxRelease_v2(int device) { CALL(""); return leave(retains-- > 0 ? OK : INVALID_CONTEXT); }
API CUresult cuCtxPushCurrent_v2(void *context) {
  CALL("");
  if (context != &context_object || !retains) return leave(INVALID_CONTEXT);
  stack[depth++] = context;
  return leave(OK);
}
API CUresult cuCtxPopCurrent_v2(void **out) {
  CALL("");
  if (!depth) return leave(INVALID_CONTEXT);
  *out = stack[--depth];
  return leave(OK);
}
API CUresult cuCtxGetCurrent(void **out) { CALL(""); *out = depth ? stack[depth - 1] : NULL; return leave(OK); }
static CUresult allocate(void *out, size_t bytes, enum Kind kind) {
  if (!bytes) return INVALID_VALUE;
  Object *object = make(kind);
  object->memory = aligned_alloc(256, (bytes + 255) / 256 * 256), object->bytes = bytes;
  memset(object->memory, 0x7e, bytes);
  *(char **)out = object->memory;
  return OK;
}
static CUresult release(char *address, enum Kind kind) {
  for (int i = 1; i < MOST; i++)
    if (objects[i].kind == kind && objects[i].memory == address) { free(address); drop(&objects[i]); return OK; }
  return INVALID_VALUE;
}
static int captures(void) {
  for (int i = 1; i < MOST; i++)
    if (objects[i].kind == STREAM && objects[i].capturing && pthread_equal(objects[i].owner, pthread_self()))
      { objects[i].invalid = 1; return 1; }
  return 0;
}
API CUresult cuMemAlloc_v2(CUdeviceptr *out, size_t bytes) {
  CALL(text(" %llu", bytes)); CURRENT;
  return leave(captures() ? CAPTURE_UNSUPPORTED : allocate(out, bytes, MEMORY));
}
API CUresult cuMemFree_v2(CUdeviceptr address) { CALL(""); CURRENT; return leave(release((char *)address, MEMORY)); }
API CUresult cuMemHostAlloc(void **out, size_t bytes, unsigned flags) {
  CALL(text(" flags=%llu", flags)); CURRENT;
  return leave(captures() ? CAPTURE_UNSUPPORTED : allocate(out, bytes, HOST));
}
API CUresult cuMemFreeHost(void *address) { CALL(""); CURRENT; return leave(release(address, HOST)); }
API CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr *out, void *host, unsigned flags) {
  CALL(""); CURRENT;
  *out = (CUdeviceptr)host;
  return leave(block(host, 1, HOST) ? OK : INVALID_VALUE);
}
static CUresult copy(void *to, const void *from, size_t bytes, void *stream) {
  Object *s = get(stream, STREAM);
  if (!s) return INVALID_HANDLE;
  return enqueue(s, (Work){COPY, to, from, bytes});
}
API CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, void *stream) {
  CALL(text(" %llu", bytes)); CURRENT;
  return leave(block((char *)to, bytes, MEMORY) && block(from, bytes, HOST) ? copy((void *)to, from, bytes, stream) : INVALID_VALUE);
}
API CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, void *stream) {
  CALL(text(" %llu", bytes)); CURRENT;
  return leave(block((char *)from, bytes, MEMORY) && block(to, bytes, HOST) ? copy(to, (void *)from, bytes, stream) : INVALID_VALUE);
}
API CUresult cuStreamCreate(void **out, unsigned flags) { CALL(text(" flags=%llu", flags)); CURRENT; *out = make(STREAM); return leave(OK); }
API CUresult cuStreamDestroy_v2(void *stream) {
  CALL(""); CURRENT;
  if (!get(stream, STREAM)) return leave(INVALID_HANDLE);
  drop(stream);
  return leave(OK);
}
API CUresult cuStreamSynchronize(void *stream) {
  CALL(""); CURRENT;
  Object *s = get(stream, STREAM);
  if (!s) return leave(INVALID_HANDLE);
  if (s->capturing) { s->invalid = 1; return leave(CAPTURE_UNSUPPORTED); }
  return leave(drain(s));
}
API CUresult cuStreamBeginCapture_v2(void *stream, int mode) {
  CALL(text(" mode=%llu", mode)); CURRENT;
  Object *s = get(stream, STREAM);
  if (!s || s->capturing) return leave(INVALID_HANDLE);
  s->capturing = 1, s->invalid = 0, s->owner = pthread_self(), s->captured = (List){0};
  return leave(OK);
}
API CUresult cuStreamEndCapture(void *stream, void **out) { /* a capture ends even where it gives no graph */
  CUresult answer = enter(__func__, "");
  CURRENT;
  Object *s = get(stream, STREAM);
  *out = NULL;
  if (!s || !s->capturing) return leave(INVALID_HANDLE);
  s->capturing = 0;
  if (s->invalid || answer) {
    free(s->captured.work), s->captured = (List){0};
    return leave(answer ? answer : CAPTURE_INVALIDATED);
  }
  Object *graph = make(GRAPH);
  graph->list = s->captured, s->captured = (List){0};
  *out = graph;
  return leave(OK);
}
API CUresult cuGraphInstantiateWithFlags(void **out, void *graph, unsigned long long flags) {
  CALL(""); CURRENT;
  Object *g = get(graph, GRAPH), *exec = g ? make(EXEC) : NULL;
  if (!g) return leave(INVALID_HANDLE);
  for (int i = 0; i < g->list.count; i++) append(&exec->list, g->list.work[i]);
  *out = exec;
  return leave(OK);
}
API CUresult cuGraphLaunch(void *exec, void *stream) {
  CALL(""); CURRENT;
  Object *e = get(exec, EXEC), *s = get(stream, STREAM);
  if (!e || !s) return leave(INVALID_HANDLE);
  for (int i = 0; i < e->list.count; i++) enqueue(s, e->list.work[i]);
  return leave(OK);
}
API CUresult cuGraphDestroy(void *graph) { CALL(""); CURRENT; if (!get(graph, GRAPH)) return leave(INVALID_HANDLE); drop(graph); return leave(OK); }
API CUresult cuGraphExecDestroy(void *exec) { CALL(""); CURRENT; if (!get(exec, EXEC)) return leave(INVALID_HANDLE); drop(exec); return leave(OK); }
API CUresult cuEventCreate(void **out, unsigned flags) { CALL(""); CURRENT; *out = make(EVENT); ((Object *)*out)->at = -1; return leave(OK); }
API CUresult cuEventDestroy_v2(void *event) { CALL(""); CURRENT; if (!get(event, EVENT)) return leave(INVALID_HANDLE); drop(event); return leave(OK); }
API CUresult cuEventRecord(void *event, void *stream) {
  CALL(""); CURRENT;
  Object *s = get(stream, STREAM);
  if (!get(event, EVENT) || !s) return leave(INVALID_HANDLE);
  return leave(enqueue(s, (Work){RECORD, .to = event}));
}
API CUresult cuEventElapsedTime(float *out, void *start, void *end) {
  CALL(""); CURRENT;
  Object *a = get(start, EVENT), *b = get(end, EVENT);
  if (!a || !b) return leave(INVALID_HANDLE);
  if (a->at < 0 || b->at < 0) return leave(600);
  *out = (float)(b->at - a->at);
  return leave(OK);
}
