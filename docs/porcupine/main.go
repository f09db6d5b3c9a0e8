// Loads a list-append history of tenure and checks with porcupine that it is linearizable as one object.
//
//	go mod init history && go get github.com/anishathalye/porcupine && go run main.go redis-seed-1-lists.jsonl
//
// An operation of unknown fate may take effect at any time after its call, or never.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"log"
	"math"
	"os"
	"time"

	"github.com/anishathalye/porcupine"
)

type header struct {
	History string `json:"history"`
	Version int    `json:"version"`
}

type step struct {
	Append *struct{ Key, Value uint64 }
	Read   *struct{ Key uint64 }
}

type line struct {
	Client int             `json:"client"`
	Called int64           `json:"called"`
	Ended  *int64          `json:"ended"`
	Input  []step          `json:"input"`
	Fate   json.RawMessage `json:"fate"`
}

// output is what a transaction read, or nothing if its fate is unknown.
type output struct {
	known bool
	lists [][]uint64
}

type state map[uint64][]uint64

func load(path string) ([]porcupine.Operation, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 64<<20)
	if !lines.Scan() {
		return nil, fmt.Errorf("%s: empty", path)
	}
	var first header
	if err := json.Unmarshal(lines.Bytes(), &first); err != nil {
		return nil, err
	}
	if first.History != "list-append" || first.Version < 1 || first.Version > 2 {
		return nil, fmt.Errorf("%s: a history of kind %q, version %d", path, first.History, first.Version)
	}
	var operations []porcupine.Operation
	for lines.Scan() {
		var one line
		if err := json.Unmarshal(lines.Bytes(), &one); err != nil {
			return nil, err
		}
		operation := porcupine.Operation{ClientId: one.Client, Input: one.Input, Call: one.Called}
		var done struct{ Done *[][]uint64 }
		if json.Unmarshal(one.Fate, &done) == nil && done.Done != nil && one.Ended != nil {
			operation.Output, operation.Return = output{true, *done.Done}, *one.Ended
		} else if string(one.Fate) == `"Failed"` {
			continue
		} else {
			operation.Output, operation.Return = output{}, math.MaxInt64
		}
		operations = append(operations, operation)
	}
	return operations, lines.Err()
}

func same(one, other []uint64) bool {
	if len(one) != len(other) {
		return false
	}
	for i := range one {
		if one[i] != other[i] {
			return false
		}
	}
	return true
}

// apply runs a transaction on a copy of the state. One of unknown fate may be without effect, which is the same as one
// that takes effect after everything else.
func apply(before, input, out interface{}) (bool, interface{}) {
	after := state{}
	for key, list := range before.(state) {
		after[key] = list
	}
	told, reads := out.(output), 0
	for _, one := range input.([]step) {
		if one.Append != nil {
			list := after[one.Append.Key]
			after[one.Append.Key] = append(list[:len(list):len(list)], one.Append.Value)
		} else if told.known {
			if reads >= len(told.lists) || !same(after[one.Read.Key], told.lists[reads]) {
				return false, before
			}
			reads++
		}
	}
	return true, after
}

func equal(one, other interface{}) bool {
	a, b := one.(state), other.(state)
	if len(a) != len(b) {
		return false
	}
	for key, list := range a {
		if !same(list, b[key]) {
			return false
		}
	}
	return true
}

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: main.go FILE")
	}
	operations, err := load(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	model := porcupine.Model{
		Init:  func() interface{} { return state{} },
		Step:  apply,
		Equal: equal,
	}
	fmt.Println(porcupine.CheckOperationsTimeout(model, operations, time.Minute))
}
