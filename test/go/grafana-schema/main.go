// Holds dashboards against Grafana's own schema: unknown, missing and mistyped fields, of panels and queries too.
package main

import (
	"fmt"
	"os"

	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

func main() {
	plugins.RegisterDefaultPlugins()
	failed := false
	for _, file := range os.Args[1:] {
		text, err := os.ReadFile(file)
		if err == nil {
			err = check(text)
		}
		// The SDK answers with an empty list of errors where it has none.
		if err != nil && err.Error() != "" {
			fmt.Printf("%s:\n%s\n", file, err)
			failed = true
		}
	}
	if failed {
		os.Exit(1)
	}
}

func check(text []byte) error {
	board := dashboard.Dashboard{}
	if err := board.UnmarshalJSONStrict(text); err != nil && err.Error() != "" {
		return err
	}
	return board.Validate()
}
