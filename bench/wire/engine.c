/* A fake OpenAI engine that is fast enough never to be the bottleneck: one thread, epoll, vLLM's wire format.
 *
 *   engine PORT GAP_US GROUPS
 *
 * A stream's head and role event go out at once, then `max_tokens` events. An even `max_tokens` is streamed as fast
 * as the socket takes it; an odd one is paced: an event every GAP_US, the streams divided into GROUPS that take
 * turns, as GROUPS replicas would step. Every event carries the time at which it was written, as text. A request
 * is told from others by little: `"stream": true`, `max_tokens`, `include_usage`. */
#include "common.h"

#define CONNECTIONS 65536
#define IN_BYTES 65536

enum phase { IDLE, STREAMING };

typedef struct {
    int fd, group, slot; /* slot: place in `active`, -1 when not streaming */
    enum phase phase;
    int left, total, prompt, usage;
    uint64_t id;
    size_t got;
    char in[IN_BYTES + 1];
    char *out; /* what the socket did not take */
    size_t out_size, out_capacity;
} Stream;

static Stream *streams[CONNECTIONS];
static int active[CONNECTIONS], active_count, fast_count, poller, groups = 1;
static uint64_t gap_ns, serial;

static int paced(const Stream *s) { return s->total & 1; }

static void retire(Stream *s) {
    if (s->slot < 0) return;
    int last = active[--active_count];
    fast_count -= !paced(s);
    active[s->slot] = last;
    streams[last]->slot = s->slot;
    s->slot = -1;
}

static void drop(Stream *s) {
    retire(s);
    close(s->fd);
    streams[s->fd] = NULL;
    free(s->out);
    free(s);
}

static void watch(Stream *s, int writable) {
    struct epoll_event e = {.events = EPOLLIN | (writable ? EPOLLOUT : 0u), .data.fd = s->fd};
    epoll_ctl(poller, EPOLL_CTL_MOD, s->fd, &e);
}

/* Sends, and keeps what is not taken. Returns -1 when the connection is gone (and freed). */
static int put(Stream *s, const char *data, size_t size) {
    if (s->out_size == 0) {
        ssize_t sent = send(s->fd, data, size, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) return drop(s), -1;
        if (sent > 0) data += sent, size -= (size_t)sent;
        if (size == 0) return 0;
        watch(s, 1);
    }
    if (s->out_size + size > s->out_capacity) {
        s->out_capacity = 2 * (s->out_size + size);
        s->out = realloc(s->out, s->out_capacity);
        if (!s->out) fail("realloc");
    }
    memcpy(s->out + s->out_size, data, size);
    s->out_size += size;
    return 0;
}

static int flush(Stream *s) {
    ssize_t sent = send(s->fd, s->out, s->out_size, MSG_NOSIGNAL);
    if (sent < 0) return errno == EAGAIN ? 0 : (drop(s), -1);
    memmove(s->out, s->out + sent, s->out_size - (size_t)sent);
    s->out_size -= (size_t)sent;
    if (s->out_size == 0) watch(s, 0);
    return 0;
}

static int framed(char *to, const char *data, int size) {
    int head = sprintf(to, "%x\r\n", (unsigned)size);
    memcpy(to + head, data, (size_t)size);
    memcpy(to + head + size, "\r\n", 2);
    return head + size + 2;
}

static int event(char *to, const Stream *s, const char *rest) {
    char data[1024];
    int size = sprintf(data,
                       "data: {\"id\":\"chatcmpl-%032llx\",\"object\":\"chat.completion.chunk\",\"created\":1790000000,"
                       "\"model\":\"m\",\"choices\":[%s}\n\n",
                       (unsigned long long)s->id, rest);
    return framed(to, data, size);
}

static int begin_stream(Stream *s) {
    char out[2048];
    int size = sprintf(out, "HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                            "transfer-encoding: chunked\r\n\r\n");
    size += event(out + size, s,
                  "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
                  "\"finish_reason\":null}]");
    s->phase = STREAMING;
    s->slot = active_count;
    active[active_count++] = s->fd;
    fast_count += !paced(s);
    return put(s, out, (size_t)size);
}

/* One event of output; after the last one the usage, [DONE] and the end of the body. */
static int step(Stream *s) {
    char out[4096], rest[512], mark[MARK + 1] = {0};
    put_mark(mark, now_ns());
    s->left--;
    sprintf(rest, "{\"index\":0,\"delta\":{\"content\":\" @%s\"},\"logprobs\":null,\"finish_reason\":%s}]", mark,
            s->left ? "null" : "\"length\"");
    int size = event(out, s, rest);
    if (s->left == 0) {
        if (s->usage) {
            sprintf(rest, "],\"usage\":{\"prompt_tokens\":%d,\"total_tokens\":%d,\"completion_tokens\":%d}", s->prompt,
                    s->prompt + s->total, s->total);
            size += event(out + size, s, rest);
        }
        size += framed(out + size, "data: [DONE]\n\n", 14);
        size += sprintf(out + size, "0\r\n\r\n");
        s->phase = IDLE;
        retire(s);
    }
    return put(s, out, (size_t)size);
}

static int whole(Stream *s) {
    char out[4096], body[3072];
    int size = sprintf(body,
                       "{\"id\":\"chatcmpl-%032llx\",\"object\":\"chat.completion\",\"created\":1790000000,\"model\":\"m\","
                       "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"",
                       (unsigned long long)s->id);
    for (int i = 0; i < s->total && i < 256; i++) size += sprintf(body + size, " steel");
    size += sprintf(body + size,
                    "\",\"tool_calls\":[]},\"logprobs\":null,\"finish_reason\":\"length\",\"stop_reason\":null}],"
                    "\"usage\":{\"prompt_tokens\":%d,\"total_tokens\":%d,\"completion_tokens\":%d}}",
                    s->prompt, s->prompt + s->total, s->total);
    int head = sprintf(out, "HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n",
                       size);
    memcpy(out + head, body, (size_t)size);
    return put(s, out, (size_t)(head + size));
}

static int other(Stream *s) {
    static const char body[] =
        "{\"object\":\"list\",\"data\":[{\"id\":\"m\",\"object\":\"model\",\"owned_by\":\"vllm\",\"root\":\"m\","
        "\"max_model_len\":32768}],\"model_path\":\"m\",\"served_model_name\":\"m\",\"is_generation\":true,"
        "\"version\":\"0.1\",\"status\":\"ok\"}";
    char out[1024];
    int size = sprintf(out, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n%s",
                       sizeof body - 1, body);
    return put(s, out, (size_t)size);
}

static int truth(const char *body, const char *key) {
    const char *at = strstr(body, key);
    if (!at) return 0;
    at += strlen(key);
    while (*at == ' ' || *at == ':') at++;
    return strncmp(at, "true", 4) == 0;
}

static int number(const char *body, const char *key, int otherwise) {
    const char *at = strstr(body, key);
    return at ? atoi(at + strlen(key) + strspn(at + strlen(key), " :")) : otherwise;
}

/* The first request in `in`: 1 it was answered or begun, 0 more bytes are needed, -1 the connection is gone. */
static int take(Stream *s) {
    s->in[s->got] = 0;
    char *end = strstr(s->in, "\r\n\r\n");
    if (!end) return 0;
    size_t head = (size_t)(end + 4 - s->in), length = 0, all;
    *end = 0;
    char *field = strcasestr(s->in, "\r\ncontent-length:");
    int chunked = !field && strcasestr(s->in, "\r\ntransfer-encoding:") != NULL;
    if (field) length = strtoull(field + 17, NULL, 10);
    *end = '\r';
    char *body = s->in + head;
    if (chunked) {
        char *last = strstr(body, "0\r\n\r\n");
        if (!last) return 0;
        all = (size_t)(last + 5 - s->in);
        length = all - head;
    } else {
        all = head + length;
    }
    if (s->got < all) return 0;
    char kept = s->in[all];
    s->in[all] = 0;
    s->id = ++serial * 0x9e3779b97f4a7c15ull;
    s->group = (int)(serial % (uint64_t)groups);
    s->prompt = (int)(length / 4);
    s->total = s->left = number(body, "\"max_tokens\"", 16);
    s->usage = truth(body, "\"include_usage\"");
    int ok;
    if (strncmp(s->in, "POST", 4) != 0) ok = other(s);
    else if (truth(body, "\"stream\"")) ok = begin_stream(s);
    else ok = whole(s);
    if (ok < 0) return -1;
    s->in[all] = kept;
    memmove(s->in, s->in + all, s->got - all);
    s->got -= all;
    return 1;
}

static int serve(Stream *s) {
    int found = 1;
    while (s->got && s->phase == IDLE && found > 0) found = take(s);
    return found;
}

static void hear(Stream *s) {
    for (;;) {
        if (s->got == IN_BYTES) return drop(s); /* larger requests are not its business */
        ssize_t got = recv(s->fd, s->in + s->got, IN_BYTES - s->got, 0);
        if (got > 0) {
            s->got += (size_t)got;
            if (s->got < IN_BYTES) break;
        } else if (got < 0 && errno == EAGAIN) {
            break;
        } else {
            return drop(s);
        }
    }
    serve(s);
}

static void greet(int listener) {
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
        if (fd >= CONNECTIONS) {
            close(fd);
            continue;
        }
        Stream *s = calloc(1, sizeof *s);
        if (!s) fail("calloc");
        s->fd = fd;
        s->slot = -1;
        streams[fd] = s;
        no_delay(fd);
        struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e);
    }
}

/* One round: every fast stream, and every paced one of `group`, that is not behind gets its next event. */
static void round_of(int group) {
    for (int i = active_count - 1; i >= 0; i--) {
        if (i >= active_count) continue; /* others ended meanwhile */
        Stream *s = streams[active[i]];
        if (s->out_size || (paced(s) && s->group != group)) continue;
        if (step(s) == 0 && s->phase == IDLE) serve(s);
    }
}

int main(int argc, char **argv) {
    if (argc != 4) return fprintf(stderr, "usage: engine PORT GAP_US GROUPS\n"), 2;
    gap_ns = strtoull(argv[2], NULL, 10) * 1000; /* at least 1 us */
    groups = atoi(argv[3]) > 0 ? atoi(argv[3]) : 1;
    signal(SIGPIPE, SIG_IGN);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = loopback(atoi(argv[1]));
    if (bind(listener, (struct sockaddr *)&address, sizeof address)) fail("bind");
    if (listen(listener, 4096)) fail("listen");
    poller = epoll_create1(0);
    struct epoll_event e = {.events = EPOLLIN, .data.fd = listener}, events[1024];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e);
    uint64_t tick = gap_ns / (uint64_t)groups, due = now_ns();
    for (int group = 0;;) {
        struct timespec wait = {.tv_sec = 1};
        uint64_t now = now_ns();
        if (active_count) {
            uint64_t left = !fast_count && due > now ? due - now : 0;
            wait = (struct timespec){.tv_sec = (time_t)(left / 1000000000ull), .tv_nsec = (long)(left % 1000000000ull)};
        }
        int count = epoll_pwait2(poller, events, 1024, &wait, NULL);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            Stream *s = fd == listener ? NULL : streams[fd];
            if (fd == listener) greet(listener);
            else if (!s) continue;
            else if (events[i].events & (EPOLLHUP | EPOLLERR)) drop(s);
            else if (events[i].events & EPOLLOUT && s->out_size && flush(s) < 0) continue;
            else if (events[i].events & EPOLLIN) hear(s);
        }
        now = now_ns();
        int turn = now >= due;
        if (turn) {
            due = due + 10 * gap_ns < now ? now + tick : due + tick;
            group = (group + 1) % groups;
        }
        if (turn || fast_count) round_of(turn ? group : -1);
    }
}
