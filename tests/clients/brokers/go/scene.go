// Clients for Go, as a program on them: `go run . BROKER CLIENT…`. Each line that it prints is a thing that held; it ends
// with 1 at the first that does not. This file holds what every client's test needs.
package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"slices"
	"time"
)

// Longest wait for anything that must happen.
const patience = 60 * time.Second

var (
	broker string
	ctx    context.Context
)

var clients = map[string]func(){"franz_go": franzGo, "sarama": saramaClient, "kafka_go": kafkaGo}

func main() {
	broker = os.Args[1]
	for _, name := range os.Args[2:] {
		// Whatever a test waits for ends with this, and says so.
		within, cancel := context.WithTimeout(context.Background(), 3*patience)
		ctx = within
		clients[name]()
		cancel()
	}
}

func held(what string, arguments ...any) { fmt.Printf(what+"\n", arguments...) }

func fail(what string, arguments ...any) {
	fmt.Fprintf(os.Stderr, what+"\n", arguments...)
	os.Exit(1)
}

// must ends the program where a step fails that has to work.
func must(err error, what string) {
	if err != nil {
		fail("%s: %v", what, err)
	}
}

// got is the answer of a step that has to work; where it does not, the panic says where it stands.
func got[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func same[T comparable](found, expected T, what string) {
	if found != expected {
		fail("%s: found %v where %v was expected", what, found, expected)
	}
}

func sameAll(found, expected []string, what string) {
	found = slices.Sorted(slices.Values(found))
	if !slices.Equal(found, slices.Sorted(slices.Values(expected))) {
		fail("%s: found %d, %.200v where %d, %.200v were expected", what, len(found), found, len(expected), expected)
	}
}

func until(what string, so func() bool) {
	for end := time.Now().Add(patience); !so(); {
		if time.Now().After(end) {
			fail("waited %v for %s", patience, what)
		}
	}
}

// unique is a name that no other test has, also on a broker that is used again.
func unique(prefix string) string { return prefix + "-" + rand.Text()[:12] }

func values(from, to int) (values []string) {
	for i := from; i < to; i++ {
		values = append(values, fmt.Sprint("v", i))
	}
	return values
}
