/*
 * A client that asks a server on this machine on a fixed schedule, over one connection. For each line on standard input:
 * the longest time from when a question was due to its answer, since the line before, in microseconds.
 *
 *   client PORT MILLISECONDS
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static atomic_long longest;

static void *answer(void *unused)
{
	char line[80];

	while (fgets(line, sizeof(line), stdin)) {
		printf("%ld\n", atomic_exchange(&longest, 0));
		fflush(stdout);
	}
	exit(0);
	return unused;
}

int main(int count, char **words)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	long interval = count == 3 ? atol(words[2]) * 1000000 : 0;
	int held = socket(AF_INET, SOCK_STREAM, 0);
	struct timespec due, now;
	pthread_t thread;
	char text[80];

	if (!interval)
		return 2;
	address.sin_port = htons(atoi(words[1]));
	if (connect(held, (struct sockaddr *)&address, sizeof(address)) || pthread_create(&thread, NULL, answer, NULL))
		return 1;
	clock_gettime(CLOCK_MONOTONIC, &due);
	for (;;) {
		long gap;

		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
		if (write(held, "ping", 4) != 4 || read(held, text, sizeof(text)) <= 0)
			return 1;
		clock_gettime(CLOCK_MONOTONIC, &now);
		gap = (now.tv_sec - due.tv_sec) * 1000000 + (now.tv_nsec - due.tv_nsec) / 1000;
		if (gap > longest)
			longest = gap;
		do {
			due.tv_nsec += interval;
			due.tv_sec += due.tv_nsec / 1000000000;
			due.tv_nsec %= 1000000000;
		} while (due.tv_sec < now.tv_sec || (due.tv_sec == now.tv_sec && due.tv_nsec <= now.tv_nsec));
	}
}
