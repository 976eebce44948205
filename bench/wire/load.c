/* A load generator that is fast enough never to be the bottleneck: one thread, epoll, a closed loop.
 *
 *   load PORT PATH KEY STREAMS TOKENS WARM_S SECONDS STREAM(0|1) THINK_US
 *
 * STREAMS connections each send one request after another, THINK_US apart, and read every answer to its end.
 * Says "go" when WARM_S are over and counts from then on. At the end it prints one JSON line: requests, chunks (marks seen), errors, and percentiles in us of the time to the first
 * byte of a body and of the transit of a chunk from the engine's write to here. */
#include "common.h"

#define BUCKETS 4096 /* log-linear: 64 steps per octave, so 1.6 % wide */

typedef struct {
    uint64_t count[BUCKETS], total;
} Histogram;

enum part { HEAD, SIZE, DATA, AFTER, TRAILER };

typedef struct {
    int fd, busy, first, chunked, status, closing;
    enum part part;
    char head[8192];
    int head_size, line; /* line: characters of the current framing line */
    long long length, body, piece;
    int mark; /* digits of a mark seen, -1 outside one */
    char digits[MARK];
    uint64_t begun, wake;
    int chunks;
} Client;

static Histogram first_byte, transit;
static uint64_t sent, answered, errors, chunks, bytes;
static struct sockaddr_in address;
static char *request;
static size_t request_size;
static int poller, streaming;
static uint64_t think_ns;

static int bucket(uint64_t v) {
    if (v < 64) return (int)v;
    int e = 63 - __builtin_clzll(v), b = (e - 5) * 64 + (int)((v >> (e - 6)) & 63);
    return b < BUCKETS ? b : BUCKETS - 1;
}

static double value(int b) { return b < 64 ? b : (double)((64ull + (uint64_t)(b & 63)) << (b / 64 - 1)); }

static void add(Histogram *h, uint64_t v) {
    h->count[bucket(v)]++;
    h->total++;
}

static double at(const Histogram *h, double share) {
    uint64_t want = (uint64_t)(share * (double)h->total), seen = 0;
    for (int b = 0; b < BUCKETS; b++)
        if ((seen += h->count[b]) > want) return value(b) / 1e3;
    return 0;
}

static void hang_up(Client *c) {
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
}

static void dial(Client *c) {
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address)) fail("connect");
    no_delay(c->fd);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &e);
}

static void ask(Client *c) {
    for (int try = 0; try < 3; try++) {
        if (c->fd < 0) dial(c);
        c->busy = 1;
        c->first = c->chunked = c->status = c->closing = c->head_size = c->line = c->chunks = 0;
        c->part = HEAD;
        c->length = -1;
        c->body = c->piece = 0;
        c->mark = -1;
        c->begun = now_ns();
        if (send(c->fd, request, request_size, MSG_NOSIGNAL) == (ssize_t)request_size) break;
        hang_up(c);
    }
    sent++;
}

static void done(Client *c, int well) {
    c->busy = 0;
    if (well && c->status == 200) {
        answered++;
    } else if (errors++ < 2) {
        fprintf(stderr, "status %d after %lld bytes: %.*s\n", c->status, c->body, c->head_size, c->head);
    }
    chunks += (uint64_t)c->chunks;
    c->chunks = 0;
    if (!well || c->closing) hang_up(c);
    if (think_ns) c->wake = now_ns() + think_ns;
    else ask(c);
}

static void body(Client *c, const char *data, long long size) {
    uint64_t now = 0;
    c->body += size;
    if (!c->first && size > 0) {
        c->first = 1;
        add(&first_byte, (now = now_ns()) - c->begun);
    }
    if (!streaming) return;
    for (const char *end = data + size; data < end;) {
        if (c->mark < 0) {
            data = memchr(data, '@', (size_t)(end - data));
            if (!data) return;
            data++;
            c->mark = 0;
            continue;
        }
        c->digits[c->mark++] = *data++;
        if (c->mark == MARK) {
            uint64_t then = get_mark(c->digits);
            if (!now) now = now_ns();
            if (now > then && now - then < 100000000000ull) add(&transit, now - then);
            c->chunks++;
            c->mark = -1;
        }
    }
}

/* Reads the head. Returns how many bytes of `data` were its, or -1 when it is none; `part` moves on when whole. */
static long long head(Client *c, const char *data, long long size) {
    int before = c->head_size;
    long long room = (long long)sizeof c->head - 1 - before, took = size < room ? size : room;
    memcpy(c->head + before, data, (size_t)took);
    c->head_size += (int)took;
    c->head[c->head_size] = 0;
    char *end = strstr(c->head, "\r\n\r\n"), *field;
    if (!end) return took < size ? -1 : took;
    end[2] = 0;
    c->status = atoi(c->head + 9);
    if ((field = strcasestr(c->head, "\r\ncontent-length:"))) c->length = atoll(field + 17);
    c->chunked = strcasestr(c->head, "\r\ntransfer-encoding:") != NULL;
    c->closing = strcasestr(c->head, "\r\nconnection: close") != NULL;
    c->part = c->chunked ? SIZE : DATA;
    c->head_size = (int)(end + 2 - c->head);
    return end + 4 - c->head - before;
}

/* Feeds bytes of one answer: 1 it is complete, 0 it is not, -1 it is none. */
static int feed(Client *c, const char *data, long long size) {
    long long i = 0;
    if (c->part == HEAD) {
        i = head(c, data, size);
        if (i < 0) return -1;
        if (c->part == HEAD) return 0;
    }
    if (!c->chunked) {
        body(c, data + i, size - i);
        return c->length >= 0 && c->body >= c->length;
    }
    while (i < size) {
        if (c->part == DATA) {
            long long took = size - i < c->piece ? size - i : c->piece;
            body(c, data + i, took);
            i += took;
            if ((c->piece -= took) == 0) c->part = AFTER;
            continue;
        }
        char ch = data[i++];
        if (ch == '\r') continue;
        if (ch != '\n') {
            if (c->part == SIZE) c->piece = c->piece * 16 + (ch <= '9' ? ch - '0' : (ch | 32) - 'a' + 10);
            c->line++;
        } else if (c->part == SIZE) {
            c->part = c->piece ? DATA : TRAILER;
            c->line = 0;
        } else if (c->part == AFTER) {
            c->part = SIZE;
            c->line = 0;
        } else {
            if (c->line == 0) return 1;
            c->line = 0;
        }
    }
    return 0;
}

static void prepare(char **argv) {
    char text[1024];
    int tokens = atoi(argv[5]);
    int size = snprintf(text, sizeof text,
                        "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"Write a long story about a mill "
                        "that grinds tokens out of steel, sand and electricity, and about those who keep it running.\"}],"
                        "\"max_tokens\":%d,\"temperature\":0.7%s}",
                        tokens, streaming ? ",\"stream\":true,\"stream_options\":{\"include_usage\":true}" : "");
    request = malloc((size_t)size + 1024);
    if (!request) fail("malloc");
    request_size = (size_t)sprintf(request,
                                   "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%s\r\nUser-Agent: load\r\nAccept: */*\r\n"
                                   "Authorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
                                   argv[2], argv[1], argv[3], size, text);
}

static int wait_ms(Client *clients, int count, uint64_t now) {
    uint64_t first = now + 100000000ull;
    if (!think_ns) return 100;
    for (int i = 0; i < count; i++) {
        if (clients[i].busy) continue;
        if (clients[i].wake <= now) ask(&clients[i]);
        else if (clients[i].wake < first) first = clients[i].wake;
    }
    return (int)((first - now) / 1000000ull);
}

static uint64_t start_counting(Client *clients, int count) {
    memset(&first_byte, 0, sizeof first_byte);
    memset(&transit, 0, sizeof transit);
    sent = answered = chunks = bytes = 0; /* errors count from the start */
    for (int i = 0; i < count; i++) clients[i].chunks = 0;
    puts("go");
    fflush(stdout);
    return now_ns();
}

int main(int argc, char **argv) {
    static char data[262144];
    struct epoll_event events[1024];
    if (argc != 10) return fprintf(stderr, "usage: load PORT PATH KEY STREAMS TOKENS WARM_S SECONDS STREAM THINK_US\n"), 2;
    int count = atoi(argv[4]);
    streaming = atoi(argv[8]);
    think_ns = strtoull(argv[9], NULL, 10) * 1000;
    signal(SIGPIPE, SIG_IGN);
    address = loopback(atoi(argv[1]));
    prepare(argv);
    poller = epoll_create1(0);
    Client *clients = calloc((size_t)count, sizeof *clients);
    if (!clients) fail("calloc");
    uint64_t begun = now_ns(), warm = begun + (uint64_t)(atof(argv[6]) * 1e9);
    uint64_t end = warm + (uint64_t)(atof(argv[7]) * 1e9), now;
    for (int i = 0; i < count; i++) {
        clients[i].fd = -1;
        ask(&clients[i]);
    }
    while ((now = now_ns()) < end) {
        if (warm && now >= warm) begun = start_counting(clients, count), warm = 0;
        int ready = epoll_wait(poller, events, 1024, wait_ms(clients, count, now));
        for (int i = 0; i < ready; i++) {
            Client *c = events[i].data.ptr;
            if (c->fd < 0) continue;
            ssize_t got = recv(c->fd, data, sizeof data, MSG_DONTWAIT);
            if (got < 0 && errno == EAGAIN) continue;
            if (got > 0) bytes += (uint64_t)got;
            int state = !c->busy ? 0 : got > 0 ? feed(c, data, got) : c->part == DATA && !c->chunked && c->length < 0 ? 1 : -1;
            if (got <= 0) c->closing = 1;
            if (!c->busy && got <= 0) hang_up(c);
            else if (state) done(c, state > 0);
        }
    }
    double seconds = (double)(now - begun) / 1e9;
    for (int i = 0; i < count; i++) chunks += (uint64_t)clients[i].chunks;
    printf("{\"seconds\":%.3f,\"requests\":%lu,\"errors\":%lu,\"chunks\":%lu,\"bytes\":%lu,\"first_p50_us\":%.1f,"
           "\"first_p99_us\":%.1f,\"transit_p50_us\":%.1f,\"transit_p99_us\":%.1f}\n",
           seconds, answered, errors, chunks, bytes, at(&first_byte, .5), at(&first_byte, .99), at(&transit, .5),
           at(&transit, .99));
    return 0;
}
