//go:build integration

// Package dapr runs Dapr's own integration suite against the binary that DAPR_INTEGRATION_DAPRD_PATH names.
package dapr

import (
	"testing"

	"github.com/dapr/dapr/tests/integration"
)

func Test_Integration(t *testing.T) {
	integration.RunIntegrationTests(t)
}
