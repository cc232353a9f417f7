/* Stands in for the agent in tests of the operator: listens where the agent does, and dies as it is told.
   A connection that sends `x` makes it exit with code 3, `m` makes it use up its memory; others are closed. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void end(int number) { (void)number; _exit(0); }

int main(void) {
    signal(SIGTERM, end);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(7443)};
    int on = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 16)) return 1;
    for (;;) {
        struct timeval wait = {.tv_usec = 200000};
        char told = 0;
        int peer = accept(listener, NULL, NULL);
        if (peer < 0) continue;
        setsockopt(peer, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
        if (read(peer, &told, 1) == 1 && told == 'x') return 3;
        while (told == 'm') memset(malloc(1 << 22), 1, 1 << 22);
        close(peer);
    }
}
