// Command network-policies enforces NetworkPolicies on one node: kube-network-policies, which says of the first packet of every connection whether it may pass.
// It is asked by the queue 100 of netfilter. Its own rules lead there by nftables' `queue`, which some kernels lack, so whoever starts it makes some by iptables.
//
//	network-policies KUBECONFIG NODE
package main

import (
	"context"
	"log"
	"os"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/kube-network-policies/pkg/networkpolicy"
)

func main() {
	config, err := clientcmd.BuildConfigFromFlags("", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		log.Fatal(err)
	}
	shared := informers.NewSharedInformerFactory(client, 0)
	core := shared.Core().V1()
	// With NRI, though nobody answers it here: without, an address of no pod ends the program.
	controller, err := networkpolicy.NewController(client, shared.Networking().V1().NetworkPolicies(), core.Namespaces(), core.Pods(), nil, nil, nil, nil,
		networkpolicy.Config{NodeName: os.Args[2], QueueID: 100})
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	shared.Start(ctx.Done())
	log.Fatal(controller.Run(ctx))
}
