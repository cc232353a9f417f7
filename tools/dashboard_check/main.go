// Command dashboard_check reads a dashboard from its standard input as Grafana's published schema has it: no field that
// the schema does not know, none of another type, none missing, in panels, their options and their queries, too.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

const kind = "timeseries"

func main() {
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		fail(err)
	}
	// The kinds of panels that there are: of another one nothing but the frame would be looked at.
	cog.NewRuntime().RegisterPanelcfgVariant(timeseries.VariantConfig())
	var whole dashboard.Dashboard
	need("", whole.UnmarshalJSONStrict(text))
	need("", whole.Validate())
	// Queries that do not name their datasource themselves are read by nobody in that.
	var read struct {
		Panels []struct {
			Title   string
			Type    string
			Targets []json.RawMessage
		}
	}
	need("", json.Unmarshal(text, &read))
	for _, panel := range read.Panels {
		if panel.Type != kind && panel.Type != "row" {
			fail(fmt.Errorf("%s: options of the type %q are not looked at", panel.Title, panel.Type))
		}
		for _, target := range panel.Targets {
			var query prometheus.Dataquery
			need(panel.Title, query.UnmarshalJSONStrict(target))
			need(panel.Title, query.Validate())
		}
	}
}

func need(where string, err error) {
	// An empty list of errors is none, and yet not nil.
	if listed := (cog.BuildErrors{}); err == nil || (errors.As(err, &listed) && len(listed) == 0) {
		return
	}
	fail(fmt.Errorf("%s: %w", where, err))
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
