//go:build !old

package main

import (
	"os"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
	"github.com/spf13/cobra"
	kubectl "k8s.io/kubectl/pkg/cmd"
)

func init() {
	components["kubectl"] = kubectl.NewDefaultKubectlCommand
	components["coredns"] = func() *cobra.Command {
		dnsserver.Directives = []string{"ready", "errors", "kubernetes"}
		coremain.Run()
		os.Exit(0)
		return nil
	}
}
